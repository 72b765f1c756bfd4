"""From a meme to a verdict: detector, explainer, batch prediction."""
