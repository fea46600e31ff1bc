"""The working copy and revisions of git, which DVC reads -> Experiment."""

from contextlib import closing, suppress

from reparam.compare.experiment import Experiment
from reparam.compare.stage_files import Files, assemble
from reparam.errors import UserError
from reparam.paths import Paths

WORKSPACE = "workspace"


def read_workspace(paths: Paths) -> Experiment:
    """Read what lies in the working copy.

    Raises: UserError where nothing does.
    """

    def read(name: str) -> bytes | None:
        path = paths.root / name
        return path.read_bytes() if path.is_file() else None

    return assemble(WORKSPACE, "working copy", Files(paths, read), "run `dvc repro`")


def read_revision(name: str, paths: Paths) -> Experiment | None:
    """Read a commit, branch, tag or experiment of DVC, through DVC's cache; None where git knows no such revision.

    Raises: UserError where several experiments bear the name, or nothing of one can be read.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    with closing(DVCFileSystem(str(paths.root), rev=name)) as revision:
        try:
            commit = revision.repo.get_rev()
        except (DvcException, SCMError) as error:  # also where there is no repository
            if str(error).startswith("ambiguous"):
                raise UserError(
                    f"{name}: several experiments of DVC bear this name; give the commit that `dvc exp show` lists"
                ) from None
            return None
        except AttributeError:  # as DVC has it where git knows the name of a file or a tree, which is no commit
            return None

        def read(file: str) -> bytes | None:
            # DVC raises an OSError of whatever kind where the cache, or a remote, does not have the file.
            with suppress(OSError, DvcException):
                return bytes(revision.read_bytes(f"/{file}"))
            return None

        hint = (
            f"DVC's cache does not have it: `dvc fetch` gets it from a remote, or `dvc exp apply {name}` (of a commit "
            f"`git checkout {name}`) and `dvc repro` make it anew"
            if revision.exists("/dvc.lock")
            else "it was not run at this revision: run `dvc exp run`, and compare that experiment"
        )
        short = commit[:7]
        return assemble(short if commit.startswith(name) else name, f"revision {short}", Files(paths, read), hint)
