"""ratios.py FOLDER: the table of bench/peers/run.sh, from the lines of both programs of ours (first-*.json, second-*.json), of PyTorch
(torch.json, the fastest of each figure) and of the row-by-row program (matvec.json). Rates of tokens are compared as they are, everything else by seconds."""
import glob
import json
import os
import sys


def read(pattern):
    rows = []
    for path in sorted(glob.glob(os.path.join(sys.argv[1], pattern))):
        with open(path) as f:
            rows += map(json.loads, f)
    return rows


def rate_of(rows, peer):
    """Of the fastest line of each figure that is the peer's work: tokens/s of the first, or one over the seconds of all."""
    seconds, rate = 0.0, 0.0
    for name in peer.get("ours", [peer["name"]]):
        same = [r for r in rows if r["name"] == name and (peer.get("model") is None or r.get("model") in (None, peer["model"]))]
        if not same:
            return 0.0
        best = max(same, key=lambda r: r["value"])
        rate = rate or best["value"]
        seconds += best.get("seconds") or 0.0
    if peer["unit"] == "tokens/s":
        return rate
    return 1 / seconds if seconds else 0.0


def fastest(rows):
    best = {}
    for row in rows:
        key = row["name"], row.get("model")
        if key not in best or row["seconds"] < best[key]["seconds"]:
            best[key] = row
    return list(best.values())


def main():
    first, second, peers, plain = (read(p) for p in ("first-*.json", "second-*.json", "torch.json", "matvec.json"))
    peers = fastest(peers)
    print(f"{'':36}{'before':>10}{'PyTorch':>10}{'rows':>10}{'after':>10}{'ratios':>8}   (tokens/s, ops: calls/s; ratios of the slower of ours)")
    for peer in peers:
        theirs = peer["value"] if peer["unit"] == "tokens/s" else 1 / peer["seconds"]
        a, b = rate_of(first, peer), rate_of(second, peer)
        slower = min(x for x in (a, b) if x) if a or b else 0
        row = next((r["value"] for r in plain if r["name"] == peer["name"]), 0)
        cells = [f"{x:10.1f}" if x else f"{'-':>10}" for x in (a, theirs, row, b)]
        ratio = f"{slower / theirs:8.2f}" if slower else f"{'-':>8}"
        more = f" {slower / row:.2f}" if slower and row else ""
        print(f"{peer['name']:36}{''.join(cells)}{ratio}{more}   {peer['note']}")


main()
