from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

from darkbloom_provider.host import runtime
from darkbloom_provider.host.runtime import Code, hashes


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_the_runtime_hash_is_the_networks_digest_of_digests(tmp_path: Path) -> None:
    tree(tmp_path, {"lib/b.py": "B", "lib/a/x.py": "X", "python": "P"})
    code = Code((tmp_path / "lib",))
    found = hashes(code.files(), tmp_path / "python")
    assert found.python == hashlib.sha256(b"P").hexdigest()
    assert found.runtime == hashlib.sha256(sha(b"X") + sha(b"B")).hexdigest()
    assert found.files == 2


def test_compiled_files_and_what_belongs_to_others_are_left_out(tmp_path: Path) -> None:
    stdlib, packages = tmp_path / "python", tmp_path / "venv/lib/site-packages"
    tree(
        stdlib,
        {"os.py": "o", "__pycache__/os.pyc": "c", "y.pyc": "c", "site-packages/other.py": "n"},
    )
    tree(packages, {"mine.py": "m"})
    code = Code((stdlib, tmp_path / "venv/lib", packages))
    names = [path.name for path in code.files()]
    assert names == ["os.py", "mine.py"]
    assert code.covers(packages / "mine.py")
    assert not code.covers(stdlib / "site-packages/other.py")
    assert not code.covers(tmp_path / "elsewhere.py")


def test_files_come_sorted_by_their_paths_with_directories_among_them(tmp_path: Path) -> None:
    tree(tmp_path, dict.fromkeys(("b.py", "b/z.py", "b/a/y.py", "b-1/x.py", "B.py", "a/c.py"), ""))
    found = list(Code((tmp_path,)).files())
    assert found == sorted(found)
    assert len(found) == 6


def test_files_are_looked_for_one_directory_after_the_other_and_never_held_as_a_whole(
    tmp_path: Path,
) -> None:
    tree(tmp_path, {"a/1.py": "", "a/2.py": "", "z/1.py": ""})
    files = Code((tmp_path,)).files()
    assert next(files) == tmp_path / "a/1.py"
    tree(tmp_path, {"z/late.py": ""})
    assert [path.name for path in files] == ["2.py", "1.py", "late.py"]


def test_one_changed_byte_one_file_more_or_less_changes_the_hash(tmp_path: Path) -> None:
    tree(tmp_path, {"lib/a.py": "A", "lib/b.py": "B", "python": "P"})
    code = Code((tmp_path / "lib",))

    def now() -> str:
        return runtime.measure(code, str(tmp_path / "python")).runtime

    seen = [now()]
    for change in ({"lib/a.py": "a"}, {"lib/c.py": ""}):
        tree(tmp_path, change)
        seen.append(now())
    (tmp_path / "lib/b.py").unlink()
    seen.append(now())
    assert len(set(seen)) == 4


def test_an_environment_of_links_is_covered_and_hashed_by_content(tmp_path: Path) -> None:
    tree(tmp_path, {"store/pkg/a.py": "A", "store/b.py": "B", "lib/c.py": "C", "evil.py": "E"})
    (tmp_path / "lib/pkg").symlink_to(tmp_path / "store/pkg")
    (tmp_path / "lib/b.py").symlink_to(tmp_path / "store/b.py")
    (tmp_path / "lib/pkg/round").symlink_to(tmp_path / "lib")
    (tmp_path / "entry").symlink_to(tmp_path / "lib")
    code = Code((tmp_path / "entry",))
    assert code.covers(tmp_path / "entry/pkg/a.py")
    assert code.covers(tmp_path / "lib/c.py"), "the same directory by its other name"
    assert not code.covers(tmp_path / "entry/../evil.py")
    assert not code.covers(tmp_path / "store/b.py"), "only by way of the link"
    names = [str(path.relative_to(tmp_path / "entry")) for path in code.files()]
    assert names == ["b.py", "c.py", "pkg/a.py"]


def test_this_process_is_covered_wherever_its_parts_lie() -> None:
    code = Code.of_this_process()
    for name in ("os", "pydantic", "darkbloom_provider.host.seal", "_ctypes"):
        __import__(name)
        file = sys.modules[name].__file__
        assert file is None or code.covers(file), name
    assert not code.covers(Path.home() / "module.py")
    assert code.roots[0] == Path(os.path.normpath(sysconfig.get_path("stdlib")))
