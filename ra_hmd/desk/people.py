"""People at the desk, and what their role allows."""

from dataclasses import dataclass

from ra_hmd.serve.auth import Role


@dataclass(frozen=True)
class User:
    """A person at the desk; `name` is the author of what they do."""

    name: str
    role: Role

    @property
    def may_decide(self) -> bool:
        """Whether the person may decide on cases and change the bank."""
        return self.role == "moderator"
