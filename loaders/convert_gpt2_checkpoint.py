"""Convert a GPT-2, of whatever files `pg-gpt2 load-model` reads, to a NumPy .npz.

The file is a standard one with the tensor names of pg_gpt2, for pg_llm_import_npz on the server; n_head and the
tokens that end texts travel in the zip comment, so that the import can register the configuration.
"""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from pg_gpt2.formats.checkpoint import hub_metadata

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import arguments, bar, output, run
from loaders.hub_model import HubModel
from loaders.load_model import about_weights, locate


def convert(hub: HubModel, target: Path) -> None:
    """Write the model to `target`, as .npz."""
    with (
        output(target) as path,
        open(path, "wb") as file,  # once: a pipe has no second time
        zipfile.ZipFile(file, "w") as archive,
        bar(hub.config.n_bytes(), f"writing {target.name}") as progress,
    ):
        for name, tensor in hub.tensors.items():
            header = {"descr": "<f4", "fortran_order": False, "shape": tensor.shape}
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for values in hub.parts(name):
                    member.write(values.tobytes())
                    progress.update(values.nbytes)
        archive.comment = json.dumps(hub_metadata(hub.config.engine())).encode()


def main() -> None:
    """Parse the command line and convert."""
    parser = arguments(__doc__, dsn=False)
    parser.add_argument("--source", required=True, help="model directory, file of weights, or hub id")
    parser.add_argument("--output", required=True, type=Path, help="the .npz to write")
    about_weights(parser)
    args = parser.parse_args()
    hub = HubModel(locate(args.source, args.revision, args.file), args.activation_function)
    for note in hub.notes:
        print(f"{args.source}: {note}", file=sys.stderr)
    convert(hub, args.output)
    print(f"wrote {len(hub.tensors)} tensors to {args.output}")


if __name__ == "__main__":
    run(main)
