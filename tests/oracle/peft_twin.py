"""Train the PEFT twin of a run of the shipped adapter: the same A and B at first, the same batches, torch's AdamW.

What twin.py says holds here, too. The base is the shipped directory; the adapter at its start is made again in the
database, from the seed in llm_adapter, and given to PEFT by save_adapter. In the end the twin chooses the topics of the
passages that were held out.

    python tests/oracle/peft_twin.py --dsn DSN --run-id 1 --csv twin.csv
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import psycopg
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loaders.common import Database
from loaders.load_model import SHIPPED
from loaders.save_adapter import save_adapter
from tests.oracle.twin import Run, Twin, train

BASE = SHIPPED / "postgresql-docs"
ADAPTER = SHIPPED / "postgresql-topics"
WORDING = "\nThe problem is with the"


class PeftTwin(Twin):
    """The base of transformers with an adapter of PEFT, and an optimizer of the adapter's matrices."""

    def __init__(self, run: Run) -> None:
        base = AutoModelForCausalLM.from_pretrained(
            BASE, **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
        )
        with tempfile.TemporaryDirectory() as directory:
            initial_adapter(run, Path(directory))
            self.model = PeftModel.from_pretrained(base, directory, is_trainable=True).train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.clip = run.config["grad_clip"]
        self.optimizer = torch.optim.AdamW(
            parameters,
            betas=(run.config["beta1"], run.config["beta2"]),
            eps=run.config["eps"],
            weight_decay=run.config["weight_decay"],
        )


def initial_adapter(run: Run, directory: Path) -> None:
    """Write what llm_adapter_create made for the run."""
    twin = f"{run.model} (twin)"
    with run.conn.transaction(force_rollback=True):
        run.conn.execute(
            "SELECT llm_adapter_create(%s, base, r, alpha, targets, dropout_p, seed) FROM llm_adapter WHERE model = %s",
            [twin, run.model],
        )
        save_adapter(Database(run.conn), twin, directory)


def passages() -> list[tuple[int, str, str]]:
    """(section, topic, body) of the passages that were held out."""
    with (ADAPTER / "topics.csv").open(encoding="utf-8", newline="") as file:
        rows = [(int(row["section"]), row["topic"], row["body"]) for row in csv.DictReader(file)]
    return [row for row in rows if row[0] % 4 == 0]


@torch.no_grad()
def chosen(model: torch.nn.Module, bodies: list[str], topics: list[str]) -> list[str]:
    """The topic of each passage that is the most probable; a topic is one token."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids = tokenizer([f" {topic}" for topic in topics])["input_ids"]
    assert {len(topic) for topic in ids} == {1}
    answers = torch.tensor(ids).flatten()
    model.eval()
    found = []
    for body in bodies:
        prompt = torch.tensor([tokenizer(body + WORDING)["input_ids"]])
        found.append(topics[int(model(prompt, logits_to_keep=1).logits[0, -1, answers].argmax())])
    return found


def accuracy(model: torch.nn.Module, each: int) -> float:
    """The share of the passages of each so-many-th section whose topic is chosen."""
    rows = passages()
    topics = sorted({topic for _, topic, _ in rows})
    rows = [row for row in rows if row[0] % each == 0]
    found = chosen(model, [body for _, _, body in rows], topics)
    return sum(a == b for a, (_, b, _) in zip(found, rows, strict=True)) / len(rows)


def main() -> None:
    """Parse the command line, train and choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", default="")
    parser.add_argument("--run-id", type=int, required=True)
    parser.add_argument("--csv", type=Path, required=True, help="where the log goes")
    parser.add_argument("--wait", type=float, default=0, help="seconds between looks for a step that is to come")
    parser.add_argument("--threads", type=int, help="of torch; default: its own")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with psycopg.connect(args.dsn, autocommit=True) as conn:
        run = Run(conn, args.run_id)
        twin = PeftTwin(run)
        train(run, twin, run.config["n_steps"], args.csv, wait=args.wait)
    for name, each in (("all", 4), ("not read by the base", 20)):
        print(f"{name}: accuracy {accuracy(twin.model, each):.3f}")


if __name__ == "__main__":
    main()
