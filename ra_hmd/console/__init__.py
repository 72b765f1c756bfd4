"""The moderators' page: a meme's verdict and its evidence, a review queue, the bank's history and figures."""
