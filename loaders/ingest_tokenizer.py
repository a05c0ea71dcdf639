"""Load a GPT-2 vocabulary for a model: vocab.json and merges.txt, or a tokenizer.json, or a directory with them.

A model may have a vocabulary before it has a configuration or weights.
"""

import sys
from pathlib import Path

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, arguments, connect, run
from loaders.vocabulary import Vocabulary


def main() -> None:
    """Parse the command line and load."""
    parser = arguments(__doc__)
    parser.add_argument("--model", required=True, help="name of the model that the vocabulary is for")
    parser.add_argument("--vocab", type=Path, help="vocab.json, or encoder.json of the original release")
    parser.add_argument("--merges", type=Path, help="merges.txt, or vocab.bpe of the original release")
    parser.add_argument("--tokenizer", type=Path, help="instead of both: a tokenizer.json, or a directory")
    parser.add_argument("--truncate", action="store_true", help="replace the vocabulary that the model has")
    args = parser.parse_args()
    if (args.vocab is None) != (args.merges is None) or (args.vocab is None) == (args.tokenizer is None):
        parser.error("give --vocab and --merges, or --tokenizer")
    vocabulary = (
        Vocabulary.from_files(args.vocab, args.merges) if args.tokenizer is None else Vocabulary.find(args.tokenizer)
    )
    with connect(args.dsn) as conn:
        vocabulary.store(Database(conn), args.model, replace=args.truncate)
    print(f'loaded {len(vocabulary.ids)} tokens and {len(vocabulary.merges)} merges for model "{args.model}"')


if __name__ == "__main__":
    run(main)
