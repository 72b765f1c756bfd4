"""`ra-hmd bank attack`: how many rows that someone slips in flip a verdict."""

from functools import partial
from typing import Annotated

import typer

from ra_hmd.attacks.bank_settings import BankAttackSettings
from ra_hmd.cli.bank import Checkpoint, Queries
from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import Final, Lists, command_line, from_settings
from ra_hmd.inference.options import BankHeadOptions

bank_attack_app = typer.Typer()


@bank_attack_app.command("attack", cls=Lists)
@from_settings
def attack_command(
    bank: Annotated[str, typer.Argument(help="Example bank, or feature store that serves as one.")],
    checkpoint: Checkpoint,
    queries: Queries,
    settings: BankAttackSettings,
    heads: BankHeadOptions,
    final: Final = False,
) -> Outcome:
    """Count the rows that flip a verdict: flipped near-duplicates, and floods of one class. Changes nothing."""
    from ra_hmd.attacks.bank_attacks import BankUnderAttack, attack_bank, print_bank_attack
    from ra_hmd.bank.embed_features import embed_store
    from ra_hmd.core.heads import BANK_HEADS
    from ra_hmd.features.test_lock import open_labels
    from ra_hmd.scoring.scorer import Scorer

    embedded = embed_store(checkpoint, queries)
    open_labels({queries: embedded.features}, [checkpoint], final=final, command=command_line())
    scorer = Scorer.open(checkpoint, bank, heads.voting, kernel=heads.kernel)
    scorer.check_origin(queries, embedded.fingerprint)
    assert scorer.reference_set is not None
    assert scorer.kernel is not None
    attacked = BankUnderAttack(
        scorer.reference_set.in_memory(),
        embedded.problem,
        heads.voting,
        scorer.kernel,
        {head: scorer.rule(head).thresholds for head in BANK_HEADS},
    )
    result = attack_bank(attacked, embedded.embeddings, settings, show=True)
    return Outcome(result, [partial(print_bank_attack, result)])
