"""Runs the sample project on a running Tunesmith: upload, train, compare. `make demo` calls it.

Everything goes through the public REST API, so the same requests work from any language. Exits 0 when the
tuned model is better on the held-out test file (lower bound of the 95% interval above 0), else 1.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import httpx

HERE = Path(__file__).resolve().parent
FINISHED = ("succeeded", "failed", "cancelled")


class Failure(Exception):
    """The run did not do what it is meant to show; the message is one line that says why."""


def default_address() -> str:
    """Return where this shell's settings put the service."""
    host = os.environ.get("TUNESMITH_HOST", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = os.environ.get("TUNESMITH_PORT", "8000")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def connect(arguments: argparse.Namespace) -> httpx.Client:
    """Return a client of the running service, with the first API key from its data folder."""
    credentials = Path(os.environ.get("TUNESMITH_DATA", "data")).expanduser() / "credentials"
    key = os.environ.get("TUNESMITH_API_KEY")
    if key is None:
        if not credentials.is_file():
            raise Failure(f"No API key in {credentials}: start the service with `make up`.")
        key = credentials.read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=f"{arguments.address}/v1/", headers=headers, timeout=60, trust_env=False)


def ask(client: httpx.Client, method: str, path: str, **content: object) -> dict:
    """Send one request and return its JSON."""
    try:
        answer = client.request(method, path, **content)
    except httpx.HTTPError as problem:
        raise Failure(f"{client.base_url} does not answer ({problem}): start it with `make up`.") from problem
    if answer.is_error:
        raise Failure(f"{method} {path}: {answer.json()['error']['message']}")
    return answer.json()


def upload(client: httpx.Client, name: str) -> str:
    """Upload one file of this folder and return its id."""
    with (HERE / name).open("rb") as data:
        return ask(client, "POST", "files", files={"file": (name, data)}, data={"purpose": "fine-tune"})["id"]


def create_job(client: httpx.Client, arguments: argparse.Namespace) -> dict:
    """Upload the three files and create the job."""
    files = {f"{place}_file": upload(client, f"{name}.jsonl") for place, name in SPLITS.items()}
    reinforcement = {
        "grader": json.loads((HERE / "grader.json").read_text()),
        "response_format": json.loads((HERE / "response_format.json").read_text()),
        # The rest is "auto": 20 steps of 8 messages with 8 answers each.
        "hyperparameters": {"max_completion_tokens": 24, "eval_interval": 10},
    }
    method = {"type": "reinforcement", "reinforcement": reinforcement}
    body = {"model": arguments.model, "suffix": "orders", "seed": arguments.seed, "method": method, **files}
    return ask(client, "POST", "fine_tuning/jobs", json=body)


SPLITS = {"training": "train", "validation": "valid", "test": "test"}


def follow(client: httpx.Client, job: dict) -> dict:
    """Print the job's events as they come and return the finished job."""
    path, seen = f"fine_tuning/jobs/{job['id']}", set()
    while True:
        job = ask(client, "GET", path)
        events = ask(client, "GET", f"{path}/events", params={"limit": 100})["data"]
        for event in reversed(events):
            if event["id"] not in seen:
                seen.add(event["id"])
                print(line(event, job), flush=True)
        if job["status"] in FINISHED:
            return job
        time.sleep(1)


def line(event: dict, job: dict) -> str:
    """Return one line about an event: a step's reward and the time left, or what the service says."""
    if event["type"] != "metrics":
        return f"  {event['message']}"
    data = event["data"]
    text = f"  step {data['step']:>3}/{data['total_steps']}"
    if "train_mean_reward" in data:
        text += f"   reward {data['train_mean_reward']:.2f}"
    if "full_valid_mean_reward" in data:
        text += f"   on the validation file {data['full_valid_mean_reward']:.2f}"
    if job["estimated_finish"]:
        left = max(0, job["estimated_finish"] - int(time.time()))
        text += f"   {left // 60}:{left % 60:02d} left"
    return text


def compare(client: httpx.Client, job: dict) -> dict:
    """Print the test scores before and after, and some answers; return the evaluation."""
    path = f"fine_tuning/jobs/{job['id']}"
    evaluation = ask(client, "GET", f"{path}/evaluation")
    print(f"\nOn {evaluation['n']} messages the model never saw, answered greedily:\n")
    print(f"  {'':<12}{'right':>8}   95% interval")
    for name, word in (("base", "before"), ("tuned", "after"), ("difference", "difference")):
        mean, (low, high) = evaluation[name]["mean"], evaluation[name]["ci95"]
        print(f"  {word:<12}{mean:>7.1%}   {low:.1%} to {high:.1%}")
    print(f"\n  {evaluation['fixed']} answers fixed, {evaluation['broken']} broken. Some of them:\n")
    messages = [json.loads(row) for row in (HERE / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    changed = [
        item
        for item in ask(client, "GET", f"{path}/evaluation/items")["data"]
        if item["change"] in ("fixed", "broken")
    ]
    for item in sorted(changed, key=lambda item: item["change"])[:4]:
        index, answers = item["item_index"], {}
        params = {"split": "test", "item_index": index, "limit": 10}
        for rollout in ask(client, "GET", f"{path}/rollouts", params=params)["data"]:
            answers[rollout["step"]] = rollout["completion"]
        print(f"  {messages[index]['messages'][-1]['content']}")
        print(f"    before  {answers[min(answers)]}\n    after   {answers[max(answers)]}\n")
    return evaluation


def run(arguments: argparse.Namespace) -> bool:
    """Run the whole project and say whether the tuned model is better."""
    with connect(arguments) as client:
        started = time.monotonic()
        job = create_job(client, arguments)
        dashboard = f"{arguments.address}/finetune/{job['id']}"
        print(f"Job {job['id']} with seed {job['seed']}; watch it at {dashboard}\n", flush=True)
        job = follow(client, job)
        if job["status"] != "succeeded":
            said = (job.get("error") or {}).get("message") or "no reason given"
            raise Failure(f"The job {job['status']}: {said}")
        evaluation = compare(client, job)
        result = {
            "base": round(evaluation["base"]["mean"], 4),
            "tuned": round(evaluation["tuned"]["mean"], 4),
            "difference": round(evaluation["difference"]["mean"], 4),
            "ci95": [round(bound, 4) for bound in evaluation["difference"]["ci95"]],
            "n": evaluation["n"],
            "train_seconds": round(job["usage_metrics"]["training_time_seconds"], 1),
            "total_seconds": round(time.monotonic() - started, 1),
            "job": job["id"],
            "model": job["fine_tuned_model"],
            "dashboard": dashboard,
        }
        better = evaluation["difference"]["ci95"][0] > 0
        print(f"The tuned model: {result['model']}")
        if not better:
            print("The tuned model is not better: the lower bound of the difference is not above 0.")
        print(f"RESULT {json.dumps(result)}", flush=True)
        return better


def main() -> int:
    """Read the command line, run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default=default_address(), help="by default %(default)s")
    parser.add_argument("--model", default="smollm2-135m-instruct-q4")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("DEMO_SEED", "42")))
    try:
        return 0 if run(parser.parse_args()) else 1
    except Failure as problem:
        print(problem, file=sys.stderr)
    except KeyboardInterrupt:
        print(
            "\nThe job goes on without this window: see the dashboard, or cancel it there.", file=sys.stderr
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
