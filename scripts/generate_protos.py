"""Regenerate the committed gRPC code from protos/twinpool/v1/*.proto, beside the sources.

``--check`` writes nothing and fails when the committed code differs from what the sources give.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = "twinpool/v1"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def generate(into: Path) -> dict[str, str]:
    """Run protoc into a folder and return each generated file's name and final text."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", *outputs, *sources]
    subprocess.run(command, check=True)
    texts = {}
    for path in sorted((into / PACKAGE).iterdir()):
        # protoc derives imports from the .proto path; ours live under the `twinpool.protos` package.
        texts[path.name] = path.read_text().replace(
            "from twinpool.v1 import", "from twinpool.protos.twinpool.v1 import"
        )
    return texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        texts = generate(Path(folder))
    target = PROTOS / PACKAGE
    stale = [
        name for name, text in texts.items() if not (target / name).exists() or (target / name).read_text() != text
    ]
    stale += [path.name for path in target.iterdir() if path.name.endswith(SUFFIXES) and path.name not in texts]
    if check:
        print(f"stale generated code: {', '.join(stale)}; run `make proto`" if stale else "generated code is current")
        return 1 if stale else 0
    for name, text in texts.items():
        (target / name).write_text(text)
    print(f"wrote {len(texts)} files to {target.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
