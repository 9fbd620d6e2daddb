// How a check speaks: one line each, `ok` or `FAIL`, and the sum at the end. Also the two helpers that all checks use.

let passed = 0;
let failed = 0;

/** Runs one check. What it returns, if anything, is evidence and stands in brackets; what it throws is the failure. */
export async function check(promise, body) {
  try {
    const evidence = await body();
    passed += 1;
    console.log(`ok    ${promise}${evidence ? ` (${evidence})` : ""}`);
    return true;
  } catch (error) {
    // A TypeError and its like are the scenario's own fault: say where.
    failed += 1;
    console.log(`FAIL  ${promise}: ${error.message}`);
    if (error.constructor !== Error && !(error instanceof Unmet)) console.log(String(error.stack).split("\n").slice(1, 4).join("\n"));
    return false;
  }
}

export function sum() {
  console.log(`${passed} passed, ${failed} failed`);
  return failed === 0;
}

class Unmet extends Error {}

/** The claim of a check: `what` says what was seen instead. */
export function expect(claim, what) {
  if (!claim) throw new Unmet(what);
}

export function same(seen, wanted, what) {
  expect(seen === wanted, `${what}: ${JSON.stringify(seen)} instead of ${JSON.stringify(wanted)}`);
}

/** Asks `probe` again and again until it answers something true; for states that announce themselves by no event. */
export async function until(probe, what, ms = 20_000) {
  const end = Date.now() + ms;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (Date.now() > end) throw new Unmet(`${what} did not come in ${ms / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
