// What the knobs make of logits, as the server does: temperature, then top-k, top-p, min-p.

// logits: of all tokens, the largest first. Gives for each its probability before the cuts, and whether a cut leaves it out.
export function distribution(logits, { temperature, topk = 0, topp = 1, min_p = 0 }) {
  if (temperature === 0) return logits.map((_, i) => ({ p: i === 0 ? 1 : 0, cut: i > 0 }));
  const weights = logits.map((logit) => Math.exp((logit - logits[0]) / temperature));
  const sum = weights.reduce((a, b) => a + b, 0);
  const kept = topk ? Math.min(topk, weights.length) : weights.length;
  const keptSum = weights.slice(0, kept).reduce((a, b) => a + b, 0);
  let before = 0; // probability of better tokens among those that top-k keeps
  return weights.map((weight, i) => {
    const cut = i >= kept || before >= topp || weight < min_p * weights[0];
    before += weight / keptSum;
    return { p: weight / sum, cut: i > 0 && cut };
  });
}
