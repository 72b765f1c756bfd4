"""The upload of a published folder to the Hugging Face hub."""

from pathlib import Path

from ra_hmd.core.errors import UserError
from ra_hmd.core.hub import connection_errors


def upload(folder: Path, repo: str, *, private: bool = True, message: str = "Published by ra-hmd push") -> str:
    """Upload a folder to a repository, which is made where it does not exist. Returns the address of the commit.

    Args:
        folder: Folder of `publish`.
        repo: Name of the repository.
        private: Whether a new repository is private; one that exists stays as it is.
        message: Message of the commit.

    Raises:
        UserError: no login, no right to write there, no such name, no connection.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with connection_errors():
            made = api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} was not uploaded to {repo}: {error}\nLog in with `hf auth login` or set HF_TOKEN, with a token "
            "that may write there, and give the same command again."
        ) from error
    return str(commit.commit_url)
