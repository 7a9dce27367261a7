#!/usr/bin/env python3
"""`forebay serve --http`: /metrics is what Prometheus reads, /stats and /history agree with what
was done, rubbish is refused while others work, and the dashboard shows it all in a real browser."""

import base64
import http.client
import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading

from lib import MIB, PAGE, PATIENCE, Cases, Server, die_with_parent, expect, free_port, main, program, run
from lib import say, sparse_file, wait_for

IMAGE = 64 * MIB
CACHE = 16 * MIB

SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{(?P<labels>[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*")*)\})?'
    r" (?P<value>[-+0-9.eE]+|[-+]?Inf|NaN)$"
)


def get(port, path, timeout=PATIENCE):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    expect(answer.status == 200, f"{path}: status {answer.status}")
    return answer, body.decode()


def parse_metrics(text):
    """Prometheus' text format, strictly: {name: {labels: value}}, and the types."""
    samples, types, helped, family = {}, {}, set(), None
    expect(text.endswith("\n"), "no newline at the end")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            expect(name not in helped, f"{name} has two HELP lines")
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            expect(family not in types and family in helped, f"TYPE of {family}")
            expect(kind in ("counter", "gauge", "histogram"), line)
            expect((kind == "counter") == family.endswith("_total"), line)
            types[family] = kind
        else:
            match = SAMPLE.match(line)
            expect(match, f"no sample: {line!r}")
            name = match["name"]
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            own = base if types.get(base) == "histogram" else name
            expect(own == family, f"{name} stands among {family}")
            known = samples.setdefault(name, {})
            expect(match["labels"] not in known, f"twice: {line}")
            known[match["labels"]] = float(match["value"])
    return samples, types


def check_histograms(samples, types):
    """Buckets rise, in order, up to the count."""
    seen = 0
    for name in (name for name, kind in types.items() if kind == "histogram"):
        series = {}
        for labels, value in samples.get(name + "_bucket", {}).items():
            rest, _, bound = labels.rpartition(',le="')
            series.setdefault(rest, []).append((float(bound.rstrip('"')), value))
        for rest, buckets in series.items():
            seen += 1
            expect(buckets == sorted(buckets), f"{name}{{{rest}}}: not in order")
            values = [value for _, value in buckets]
            expect(values == sorted(values), f"{name}{{{rest}}}: not cumulative")
            expect(buckets[-1][0] == float("inf"), f"{name}{{{rest}}}: no +Inf")
            expect(values[-1] == samples[name + "_count"][rest], f"{name}{{{rest}}}: count")
    expect(seen, "no histograms")


def load(client, accesses, seed=1):
    """Some pages often, others seldom."""
    rng = random.Random(seed)
    for i in range(accesses):
        page = int(rng.random() ** 3 * (IMAGE // PAGE))
        if i % 4:
            client.read(page * PAGE, PAGE)
        else:
            client.write(page * PAGE, bytes(PAGE))


def metrics(server, port):
    # Both say the same only if nothing was written back or evicted between them.
    def at_rest():
        nonlocal answer, text, stats
        before = json.loads(get(port, "/stats")[1])["cache"]
        answer, text = get(port, "/metrics")
        stats = json.loads(get(port, "/stats")[1])
        return stats["cache"] == before

    answer = text = stats = None
    wait_for(at_rest, PATIENCE, "a cache at rest")
    expect(answer.getheader("Content-Type").startswith("text/plain; version=0.0.4"), "its type")
    samples, types = parse_metrics(text)
    check_histograms(samples, types)
    told = server.statistics()
    expect(set(stats) == set(told), f"/stats has {set(stats) ^ set(told)} by itself")
    for command in ("read", "write"):
        labels = f'export="disk.img",command="{command}"'
        counted = samples["forebay_requests_total"][labels]
        expect(counted == stats["commands"][command]["count"] > 0, f"{command}: {counted}")
    cache = stats["cache"]
    for name, value in (("hits_total", cache["hits"]), ("misses_total", cache["misses"])):
        expect(samples["forebay_cache_" + name][None] == value, name)
    expect(samples["forebay_cache_resident_bytes"][None] == cache["resident_pages"] * PAGE, "pages")
    curve = cache["miss_ratio_curve"]["points"]
    expect(len(curve) > 5, f"a curve of {len(curve)} points")
    expect(all(a[0] < b[0] and a[1] >= b[1] for a, b in zip(curve, curve[1:])), "it rises")
    # As large as the image: only the first access to each page misses.
    expect(curve[-1][1] < 0.75 and curve[0][1] > 0.85, f"{curve[0]}, {curve[-1]}")
    promtool = shutil.which("promtool")
    if promtool:
        done = subprocess.run([promtool, "check", "metrics"], input=text, text=True, timeout=PATIENCE,
                              capture_output=True)
        expect(done.returncode == 0, f"promtool: {done.stdout}{done.stderr}")


def rubbish(server, port):
    """Clients that send nonsense, nothing, or one byte at a time, while another one verifies."""
    before = json.loads(get(port, "/stats")[1])["clients_total"]
    rng = random.Random(3)
    over = threading.Event()

    def throw():
        while not over.is_set():
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
                sock.settimeout(0.05)
                try:
                    kind = rng.randrange(4)
                    if kind == 0:
                        sock.sendall(rng.randbytes(rng.randrange(1, 20_000)))
                    elif kind == 1:
                        sock.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n")
                    elif kind == 2:
                        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\nzz")
                    else:
                        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 60_000)
                    sock.recv(100)
                except OSError:
                    pass

    threads = [threading.Thread(target=throw) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        client = server.client()
        data = {page: rng.randbytes(PAGE) for page in range(150)}
        for page, content in data.items():
            client.write(page * PAGE, content)
        for page, content in data.items():
            expect(client.read(page * PAGE, PAGE) == content, f"page {page} differs")
        client.disconnect()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    after = json.loads(get(port, "/stats")[1])["clients_total"]
    expect(after == before + 1, f"{after - before} NBD clients more")
    expect(not re.search("error|warn", server.stderr(), re.I), server.stderr())


def command_line(image):
    for value, words in (
        ("nonsense", ("--http nonsense", "HOST:PORT")),
        ("192.0.2.1:80", ("--http 192.0.2.1:80", "address of this machine")),
    ):
        done = run(program(), "serve", image, "--cache", "4M", "--http", value, check=False)
        expect(done.returncode == 1 and len(done.stderr.splitlines()) == 1, f"{value}: {done}")
        expect(all(word in done.stderr for word in words), f"{value}: {done.stderr}")


class Browser:
    """Headless Chromium, by the W3C's WebDriver protocol."""

    def __init__(self, directory):
        self.port = free_port()
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={self.port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            start_new_session=True,
            env=dict(os.environ, HOME=directory),
        )
        self.session = None
        wait_for(self.ready, PATIENCE, "chromedriver's readiness")
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        arguments += ["--disable-dev-shm-usage", "--window-size=1320,1500"]
        arguments += [f"--user-data-dir={directory}/chromium", "--no-proxy-server"]
        options = {"args": arguments}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options,
                        "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = answer["sessionId"]

    def ready(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        where = "/".join(part for part in ("/session", self.session, path) if part)
        connection.request(method, where, json.dumps(body or {}) if method == "POST" else None,
                           {"Content-Type": "application/json"})
        value = json.loads(connection.getresponse().read())["value"]
        connection.close()
        expect(not (isinstance(value, dict) and "error" in value), f"{path}: {str(value)[:400]}")
        return value

    def run(self, script):
        return self.call("POST", "execute/sync", {"script": "return " + script, "args": []})

    def text(self, selector):
        return self.run(f"document.querySelector({selector!r}).textContent")

    def close(self):
        if self.session:
            self.call("DELETE", "")
        self.driver.terminate()
        self.driver.wait()


def browser(server, port, directory):
    view = Browser(directory)
    try:
        view.call("POST", "url", {"url": f"http://127.0.0.1:{port}/"})
        wait_for(lambda: view.text("#state") == "live", PATIENCE, "the dashboard's first answer")
        # It remembers what was done before it was opened, and follows what is done now.
        reads = "rows.reduce((n, r) => n + r.reads, 0)"
        before = wait_for(lambda: view.run(reads), PATIENCE, "what was done before")
        client = server.client()
        load(client, 1500, seed=5)
        client.flush()
        wait_for(lambda: view.run(reads) >= before + 1125, PATIENCE, "its reads")
        wait_for(lambda: view.text("#tile-clients") == "1", PATIENCE, "its client")
        sentence = wait_for(lambda: view.text("#sentence"), PATIENCE, "a sentence")
        words = re.match(r"With 32 MiB you would miss ([\d.]+) %, with 64 MiB ([\d.]+) %; with "
                         r"16 MiB, as now, ([\d.]+) %", sentence)
        expect(words, sentence)
        expect(100 > float(words[3]) >= float(words[1]) >= float(words[2]) > 0, sentence)
        expect(re.fullmatch(r"[\d.]+ %|–", view.text("#tile-hit")), view.text("#tile-hit"))
        expect("disk.img" in view.text("#exports") and "64 MiB" in view.text("#exports"), "exports")
        expect("page_index_node" in view.text("#pools"), "pools")
        expect(view.text("#limits") == "", view.text("#limits"))
        run(program(), "tune", server.stat_address, "--limit", "iops=5000,bytes=20M,memory=8M")
        said = "Limits: disk.img: 5000 requests/s, 20 MiB/s, 8 MiB of the cache"
        wait_for(lambda: view.text("#limits") == said, PATIENCE, "the limits")
        run(program(), "tune", server.stat_address, "--limit", "iops=0,bytes=0,memory=0")
        # Every plot has drawn its lines inside its frame, and nothing is no number.
        for plot in ("curve", "hit-ratio", "throughput", "requests", "read-latency",
                     "write-latency", "dirty", "devices", "memory"):
            lines = f"[...document.querySelectorAll('#{plot} .line')].map(p => p.getAttribute('d'))"
            drawn = lambda: any(len(d) > 8 for d in view.run(lines) if d)
            wait_for(drawn, PATIENCE, f"a line in {plot}")
            paths = view.run(lines)
            expect(all("NaN" not in d and "Infinity" not in d for d in paths), f"{plot}: {paths}")
        # A pointer on a plot shows the values there.
        view.run("void charts[1].svg.dispatchEvent(new PointerEvent('pointermove', "
                 "{clientX: charts[1].svg.getBoundingClientRect().right - 12, clientY: 500}))")
        expect(re.search(r"read[\d.]+ ([KMG]i)?B/s", view.text("#tip")), view.text("#tip"))
        loaded = view.run("performance.getEntriesByType('resource').map(e => e.name)")
        strangers = [name for name in loaded if not name.startswith((f"http://127.0.0.1:{port}/", "data:"))]
        expect(loaded and not strangers, f"loaded from elsewhere: {strangers}")
        log = view.call("POST", "se/log", {"type": "browser"})
        expect(not log, f"the console says: {log}")
        if os.environ.get("FOREBAY_SCREENSHOT"):
            with open(os.environ["FOREBAY_SCREENSHOT"], "wb") as file:
                file.write(base64.b64decode(view.call("GET", "screenshot")))
        # A server that has gone is told.
        client.disconnect()
        expect(server.stop() == 0, server.stderr())
        wait_for(lambda: view.text("#state") == "the server does not answer", PATIENCE, "its absence")
    finally:
        view.close()


def test(directory):
    image = sparse_file(os.path.join(directory, "disk.img"), IMAGE)
    port = free_port()
    cases = Cases()
    with cases.case("command_line"):
        command_line(image)
    options = ["--http", f"127.0.0.1:{port}", "--readahead", "0"]
    with Server(image, cache=CACHE, options=options) as server:
        expect(f"dashboard at http://127.0.0.1:{port}/" in server.stdout(), server.stdout())
        client = server.client()
        load(client, 6000)
        client.flush()
        client.disconnect()
        with cases.case("metrics"):
            metrics(server, port)
        with cases.case("rubbish"):
            rubbish(server, port)
        if shutil.which("chromium") and shutil.which("chromedriver"):
            with cases.case("browser"):
                browser(server, port, directory)
        else:
            say("skipped browser: chromium or chromedriver is not installed")
    cases.finish()


main(test)
