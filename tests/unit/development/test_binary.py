"""A program file has the compiled readers, or somebody asked for one without them."""

from pathlib import Path

import pytest

from rsky_pipeline.development.binary import compiled_modules, require_compiled


def test_a_file_without_a_compiled_reader_is_refused(tmp_path: Path) -> None:
    names = compiled_modules()
    assert len(names) >= 5
    files = [tmp_path / f"{name.replace('.', '/')}.abi3.so" for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    require_compiled(tmp_path)
    for name, file in zip(names, files, strict=True):
        file.unlink()
        with pytest.raises(SystemExit, match="PURE=1") as refused:
            require_compiled(tmp_path)
        assert name in str(refused.value)
        file.touch()
