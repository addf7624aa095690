"""The dashboard's queries and the alerts, asked of a real Prometheus that scrapes a live server under LMCache's client.

    dashboard.py SERVER PROMETHEUS DEPLOY       the program, Prometheus, and the folder docs/deploy

The traffic has hits in both tiers, misses, refusals, transfers that are never committed, and a tier that fails. Prints which
query gave data; exits with 1 if one gave none or an alert could not be asked.
"""

import json
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import zmq
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey, RegisterEngineDrivenContextPayload
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

SERVER, PROMETHEUS, DEPLOY = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
MODEL, WORKER, STRANGER = "dashboard", 7, 99
SECONDS, LIMIT = 40, 20


def serve(folder):
    disk = {"type": "fs", "base_path": f"{folder}/kv", "max_capacity_gb": 0.05}
    flaky = {
        "type": "fault_inject", "name": "flaky", "rate": 0.3, "faults": ["error", "bit_flip", "delay"],
        "inner": {"type": "mock", "max_size_gb": 0.05, "mock_bandwidth_gb": 10},
    }
    flags = ["--port", "0", "--http-port", "0", "--l1-size-gb", "0.03125", "--shm-name", pathlib.Path(folder).name]
    adapters = ["--l2-adapter", json.dumps(disk), "--l2-adapter", json.dumps(flaky)]
    return subprocess.Popen([SERVER, "--log", "error", "serve", *flags, *adapters], stdout=subprocess.PIPE, text=True)


def scrape(folder, target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str((DEPLOY / "prometheus/kvstrata.rules.yaml").resolve())],
        "scrape_configs": [{"job_name": "kvstrata", "static_configs": [{"targets": [target]}]}],
    }
    # What is JSON is YAML, too.
    pathlib.Path(f"{folder}/prometheus.yaml").write_text(json.dumps(config))
    flags = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data", "--log.level=error"]
    return subprocess.Popen([PROMETHEUS, *flags, f"--web.listen-address={address}"]), address


def key(number, request, worker):
    tokens = (number,) + tuple(range(1023))
    return IPCCacheServerKey(
        model_name=MODEL, world_size=1, worker_id=worker, token_ids=tokens, start=0, end=len(tokens),
        request_id=request, num_kv_readers=1,
    )


def traffic(endpoint):
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    client = RequestClientFactory.create(endpoint, context=context)

    def ask(operation, *arguments):
        return getattr(client, operation)(*arguments).result(timeout=LIMIT)

    ask("register_kv_cache_engine_driven_context", RegisterEngineDrivenContextPayload(
        instance_id=WORKER, model_name=MODEL, world_size=1, block_size=16, num_layers=1, hidden_dim_size=128,
        dtype_str="float16", use_mla=False, num_physical_slots=256,
    ))
    until, n = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        n += 1
        number, request = random.randrange(150), f"r{n}"
        ask("lookup", key(number, request, None), 1)
        while (found := ask("query_prefetch_status", request)) is None:
            time.sleep(0.002)
        transfer = key(number, request, 0)
        if found == 4:
            if ask("prepare_retrieve", transfer, WORKER).success:
                ask("commit_retrieve", transfer, WORKER)
        else:
            ask("prepare_store", transfer, WORKER)
            if n % 10:
                ask("commit_store", transfer, WORKER, b"")
        if n % 7 == 0:
            ask("prepare_store", transfer, STRANGER)
        ask("end_session", request)
        ask("ping", WORKER)
        time.sleep(0.05)
    client.close()


def check(address):
    def ask(path, **arguments):
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=LIMIT) as answer:
            return json.load(answer)["data"]

    now, empty = time.time(), 0
    dashboard = json.loads((DEPLOY / "grafana/kvstrata.json").read_text())
    queries = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    for title, query in queries:
        query = query.replace("$instance", ".*").replace("$__rate_interval", "30s")
        series = ask("query_range", query=query, start=now - SECONDS + 5, end=now, step=1)["result"]
        points = sum(value != "NaN" for one in series for _, value in one["values"])
        empty += points == 0
        print(f"{title}: {len(series)} series, {points} points{'' if points else ': FAILED'}")
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    for rule in rules:
        empty += rule["health"] != "ok"
        print(f"alert {rule['name']}: {rule['health']}, {rule['state']} {rule.get('lastError', '')}")
    print(f"{len(queries)} queries, {len(rules)} alerts, {empty} without an answer")
    return empty


def main():
    with tempfile.TemporaryDirectory(prefix="dashboard-") as folder:
        children = [serve(folder)]
        try:
            said = {}
            for line in children[0].stdout:
                what, _, where = line.strip().partition(" at ")
                said[what] = where
                if what == "ready":
                    break
            prometheus, address = scrape(folder, said["HTTP"].removeprefix("http://"))
            children.append(prometheus)
            traffic(said["listening"])
            empty = check(address)
        finally:
            for child in children:
                child.terminate()
                child.wait(LIMIT)
    sys.exit(1 if empty else 0)


if __name__ == "__main__":
    main()
