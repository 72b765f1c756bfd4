"""Training text of tiny tokenizers."""

from ra_hmd.data.prompt import OFFICIAL_ANSWERS, OFFICIAL_PROMPT


def corpus(*frames: str) -> list[str]:
    """The demo's own sentences, its questions and answers, and `frames` of a chat format."""
    from ra_hmd.data.synthetic.confounders import CAPTION_PROMPT, DOMAINS, caption_corpus, descriptions

    subjects = [subject for domain in DOMAINS for pair in domain.pairs for subject in pair]
    sentences = [text for domain in DOMAINS for body in domain.bodies for text in descriptions("", body, "", "")]
    sentences += [text for subject in subjects for text in descriptions(subject, "", subject, "")]
    asked = [OFFICIAL_PROMPT, CAPTION_PROMPT, *OFFICIAL_ANSWERS, *frames]
    return (caption_corpus() + sentences + asked) * 2 + list(OFFICIAL_ANSWERS) * 50
