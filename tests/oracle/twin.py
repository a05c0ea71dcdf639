"""Train the PyTorch twin of a run: GPT2LMHeadModel from the same weights on the same batches, with the same AdamW.

Everything comes from the database that has the run: its parameters (llm_run), batches and learning rates
(llm_train_log), rows (llm_dataset), and the weights at its start, which llm_init_model makes again from their seed.
Dropout must have been 0, since torch draws other numbers. Each step is a line of the CSV; with --state, a run that was
interrupted goes on where it was.

    python tests/oracle/twin.py --dsn DSN --run-id 1 --init-seed 15 --csv twin.csv
"""

import argparse
import csv
import io
import time
from pathlib import Path
from typing import Any

import psycopg
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel

SAVE_EVERY = 50  # steps
IGNORED = -100
Row = tuple[list[int], list[int], float]  # tokens, targets, weight
COLUMNS = ("step", "lr", "loss", "grad_norm", "tokens", "seconds", "val_loss")


class Run:
    """What the database knows of a run."""

    def __init__(self, conn: psycopg.Connection, run_id: int) -> None:
        found = conn.execute("SELECT model, config FROM llm_run WHERE run_id = %s", [run_id]).fetchone()
        if found is None:
            raise SystemExit(f"there is no run {run_id}")
        self.conn, self.run_id = conn, run_id
        self.model, self.config = found
        if self.config["dropout_p"]:
            raise SystemExit("the twin knows no dropout")

    def initial_weights(self, seed: int) -> tuple[GPT2Config, dict[str, torch.Tensor]]:
        """Configuration and weights of llm_init_model."""
        row = self.conn.execute(
            "SELECT n_layer, n_head, d_model, n_positions, vocab FROM llm_model_config WHERE model = %s", [self.model]
        ).fetchone()
        assert row is not None
        twin = f"{self.model} (twin)"
        with self.conn.transaction(force_rollback=True):
            self.conn.execute("SELECT llm_init_model(%s, %s, %s, %s, %s, %s, %s)", [twin, *row, seed])
            chunks = self.conn.execute("SELECT llm_export_safetensors(%s)", [twin], binary=True).fetchall()
        n_layer, n_head, d_model, n_positions, vocab = row
        config = GPT2Config(
            n_layer=n_layer,
            n_head=n_head,
            n_embd=d_model,
            n_positions=n_positions,
            vocab_size=vocab,
            bos_token_id=vocab - 1,
            eos_token_id=vocab - 1,
            activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, computed faster
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
        )
        return config, safetensors.torch.load(b"".join(chunk for (chunk,) in chunks))

    def rows(self, split: str) -> dict[int, Row]:
        """Tokens, targets and weight by id."""
        query = "SELECT id, tokens, target, weight FROM llm_dataset WHERE model = %s AND split = %s ORDER BY id"
        return {row[0]: row[1:] for row in self.conn.execute(query, [self.model, split])}

    def step(self, step: int) -> tuple[list[int], float, bool] | None:
        """Batch and learning rate of a step, and whether the validation loss was measured after it."""
        query = "SELECT batch, lr, val_loss IS NOT NULL FROM llm_train_log WHERE run_id = %s AND step = %s"
        return self.conn.execute(query, [self.run_id, step]).fetchone()


class Twin:
    """The model of torch, and its optimizer."""

    def __init__(self, run: Run, init_seed: int) -> None:
        config, weights = run.initial_weights(init_seed)
        self.model = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
        missing = self.model.load_state_dict(weights, strict=False)
        assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])  # tied to wte
        self.model.train()
        settings, parameters = run.config, list(self.model.parameters())
        self.clip = settings["grad_clip"]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings["weight_decay"]},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["eps"],
            fused=True,
        )

    def loss(self, rows: list[Row]) -> torch.Tensor:
        """Mean cross entropy of some rows, padded to the longest: of targets that are not -100, by the weights of the rows."""
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad([torch.tensor(row[0]) for row in rows], batch_first=True)
        targets = pad([torch.tensor(row[1]) for row in rows], batch_first=True, padding_value=IGNORED).flatten()
        logits = self.model(tokens, use_cache=False).logits.flatten(0, 1)
        weights = torch.tensor([row[2] for row in rows])
        if (weights == 1).all():
            return torch.nn.CrossEntropyLoss(ignore_index=IGNORED)(logits, targets)
        losses = torch.nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="none")(logits, targets)
        each = weights.repeat_interleave(tokens.shape[1]) * (targets != IGNORED)
        return (losses * each).sum() / each.sum()

    def step(self, rows: list[Row], lr: float) -> tuple[float, float]:
        """One step of AdamW: the loss before it, and the norm of the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(rows)
        loss.backward()
        limit = self.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        return float(loss.detach()), float(norm)

    @torch.no_grad()
    def evaluate(self, rows: list[Row], at_once: int = 16) -> float:
        """Mean cross entropy of many rows, which have the same length."""
        parts = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
        return sum(len(part) * float(self.loss(part)) for part in parts) / len(rows)

    def state(self) -> dict[str, Any]:
        """What goes on from here."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def train(
    run: Run,
    twin: Twin,
    n_steps: int,
    path: Path,
    *,
    state: Path | None = None,
    wait: float = 0,
    eval_every: int = 1,
) -> list[dict[str, Any]]:
    """Train, writing `path` now and then and at the end; a step that is not logged yet is waited for."""
    train_rows, val_rows = run.rows("train"), list(run.rows("val").values())
    done: list[dict[str, Any]] = []
    if state is not None and state.exists():
        saved = torch.load(state, weights_only=True)
        twin.model.load_state_dict(saved["model"])
        twin.optimizer.load_state_dict(saved["optimizer"])
        done = list(csv.DictReader(io.StringIO(saved["csv"])))
    for step in range(len(done) + 1, n_steps + 1):
        while (found := run.step(step)) is None:
            if not wait:
                raise SystemExit(f"step {step} is not in the log")
            time.sleep(wait)
        batch, lr, validates = found
        validates = validates and (step % eval_every == 0 or step == n_steps)
        began = time.perf_counter()
        loss, norm = twin.step([train_rows[id_] for id_ in batch], lr)
        seconds = time.perf_counter() - began
        tokens = sum(target != IGNORED for id_ in batch for target in train_rows[id_][1])
        val_loss = twin.evaluate(val_rows) if validates else ""
        done.append(dict(zip(COLUMNS, (step, lr, loss, norm, tokens, seconds, val_loss), strict=True)))
        if validates or step == n_steps or step % SAVE_EVERY == 0:
            print(
                f"step {step}: loss {loss:.4f}, validation loss {val_loss}, {tokens / seconds:,.0f} tokens/s",
                flush=True,
            )
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(done)
            path.write_text(text.getvalue(), encoding="utf-8")
            if state is not None:
                torch.save(twin.state() | {"csv": text.getvalue()}, state)
    return done


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", default="")
    parser.add_argument("--run-id", type=int, required=True)
    parser.add_argument("--init-seed", type=int, required=True, help="the seed that llm_init_model was given")
    parser.add_argument("--csv", type=Path, required=True, help="where the log goes")
    parser.add_argument("--state", type=Path, help="weights and optimizer state are kept here, and taken up from here")
    parser.add_argument("--steps", type=int, help="default: all")
    parser.add_argument(
        "--eval-every", type=int, default=1, help="measure the validation loss at multiples of this only"
    )
    parser.add_argument("--wait", type=float, default=0, help="seconds between looks for a step that is to come")
    parser.add_argument("--threads", type=int, help="of torch; default: its own")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with psycopg.connect(args.dsn, autocommit=True) as conn:
        run = Run(conn, args.run_id)
        steps = args.steps or run.config["n_steps"]
        train(
            run,
            Twin(run, args.init_seed),
            steps,
            args.csv,
            state=args.state,
            wait=args.wait,
            eval_every=args.eval_every,
        )


if __name__ == "__main__":
    main()
