"""Cases of moderation: memes that wait for a person, and what people decided on them."""
