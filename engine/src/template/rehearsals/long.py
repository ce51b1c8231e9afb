# Modules that programs import, and find loaded. Not multiprocessing, which draws a key when it is imported, nor ctypes: what it calls
# may have output of its own, so that programs end in another way once it is there. And few that are packages: `import xml` would
# do where `import xml.etree` is meant.
import argparse, ast, asyncio, atexit, base64, bisect, contextlib, copy, csv, decimal, fractions, glob, gzip, hashlib, heapq, hmac
import inspect, io, json, locale, logging, os, pickle, platform, pprint, queue, random, re, secrets, shlex, shutil, signal, socket
import sqlite3, statistics, string, struct, subprocess, sys, tempfile, threading, time, traceback, unicodedata, urllib.parse, uuid
import warnings, weakref, zipfile, zlib
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from enum import Enum
from functools import lru_cache, partial, reduce
from itertools import accumulate, combinations, groupby, permutations, product
from pathlib import Path
from typing import Optional, Protocol


class Colour(Enum):
    RED = 1
    BLUE = 2


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


@dataclass(order=True)
class Square(Shape):
    side: float = 1.0
    tags: list[str] = field(default_factory=list)

    def area(self):
        return self.side**2

    @property
    def name(self):
        return type(self).__name__

    @staticmethod
    def unit():
        return Square()


@lru_cache(maxsize=None)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@contextlib.contextmanager
def told(what):
    try:
        yield what
    finally:
        print("end of", what)


async def tick(n):
    await asyncio.sleep(0.001)
    return n


async def ticks():
    lock = asyncio.Lock()
    async with lock:
        task = asyncio.create_task(tick(0))
    return [await task, *await asyncio.gather(*(tick(n) for n in range(3)))]


def values():
    print(f"{fibonacci(20):>8,} {math_of():.3f} {Colour.RED!r} {Square(2.0, ['a'])} {Square.unit().name} {1_000_000:,}")
    words = "the quick brown fox jumps over the lazy dog the end".split()
    print(Counter(words).most_common(2), sorted(words, key=len, reverse=True)[:3], {w: len(w) for w in words}, set(words) - {"the"})
    print(list(permutations("abc", 2)), list(combinations(range(4), 2))[-1], [list(g) for _, g in groupby("aabb")])
    print(reduce(lambda a, b: a * b, range(1, 10)), list(accumulate([1, 2, 3])), list(zip("ab", (1, 2))), max(words), sum(range(9)))
    print(re.sub(r"(?P<first>\w)(\w*)", lambda m: m["first"].upper() + m[2], "some words"), re.findall(r"\d+", "a1b22"), "a,b".split(","))
    print(json.dumps({"name": "x", "list": [1, 2.5, None, True], "nested": {"é": "ü"}}, indent=2, sort_keys=True), json.loads('[{"a": 1e3}]'))
    print(datetime(2024, 2, 29, 12, 30).strftime("%Y-%m-%d %H:%M:%S"), date(2024, 1, 1) + timedelta(days=31), datetime.now(timezone.utc).year > 2000)
    print(datetime.fromisoformat("2024-05-06T07:08:09").isoformat(), decimal.Decimal("1.10") + 2, fractions.Fraction(1, 3) * 3, round(2.675, 2))
    print(statistics.mean([1, 2, 3]), statistics.stdev([1, 2, 4]), divmod(17, 5), hex(255), bin(5), 2**100, int("ff", 16), 7 // 2, 7 % 3, 1e-3, complex(1, 2))
    print(hashlib.sha256(b"a").hexdigest()[:8], hashlib.md5(b"a").hexdigest()[:8], base64.b64encode(b"hello").decode(), zlib.crc32(b"a"))
    heap, waiting = [3, 1, 2], deque([1, 2], maxlen=3)
    heapq.heapify(heap), waiting.append(3), waiting.rotate(1)
    print(heapq.heappop(heap), waiting, bisect.bisect([1, 3], 2), copy.deepcopy({"a": [1]}), pickle.loads(pickle.dumps(words))[0])
    grid = defaultdict(list)
    grid["a"].append([[0] * 3 for _ in range(3)])
    print(dict(grid), OrderedDict(a=1), namedtuple("Point", "x y")(1, 2), "%-5s|%5.1f" % ("a", 2.5), "{:>5}".format("x"), "x".center(5, "*"))
    print("Title Case".swapcase(), "a-b".replace("-", "+"), " x ".strip(), "é".encode(), b"\xff".hex(), ord("a"), chr(97), "abc"[::-1], not [])
    pprint.pprint({"a": list(range(30)), "b": {"c": "d" * 60}})
    match [1, 2, 3]:
        case [first, *rest]:
            print(first, rest)


def math_of():
    import math

    return math.sqrt(2) * math.sin(1) + math.log(3) + math.factorial(5) + math.gcd(12, 18) + math.floor(2.5) + math.comb(5, 2)


def errors():
    for wrong in (lambda: 1 / 0, lambda: [][1], lambda: int("x"), lambda: None.x, lambda: "a" + 1, lambda: open("/nowhere")):
        try:
            wrong()
        except (ZeroDivisionError, IndexError, ValueError) as error:
            print(type(error).__name__, error)
        except Exception as error:
            traceback.print_exception(error)
    try:
        try:
            raise KeyError("a")
        except KeyError as error:
            raise RuntimeError("b") from error
    except RuntimeError:
        sys.excepthook(*sys.exc_info())
    try:
        compile("x = (", "main.py", "exec")
    except SyntaxError:
        sys.excepthook(*sys.exc_info())


def files():
    from xml.etree import ElementTree

    with tempfile.TemporaryDirectory() as folder, told("files"):
        path = Path(folder) / "data" / "a.csv"
        path.parent.mkdir(parents=True)
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["a", "b"], [1, "x y"]])
        with open(path) as file:
            print(list(csv.DictReader(file)))
        path.with_suffix(".json").write_text(json.dumps([1, 2]))
        for root, _, names in os.walk(folder):
            print(os.path.relpath(root, folder), sorted(names))
        print(path.exists(), path.stat().st_size, path.read_text().splitlines(), sorted(p.name for p in path.parent.glob("*")))
        shutil.copy(path, path.with_name("b.csv"))
        with zipfile.ZipFile(f"{folder}/a.zip", "w") as archive:
            archive.write(path, "a.csv")
        with sqlite3.connect(f"{folder}/a.db") as database:
            database.execute("create table points (id integer primary key, name text, x real)")
            database.executemany("insert into points (name, x) values (?, ?)", [("a", 1.5), ("b", 2.5)])
            print(database.execute("select name, sum(x) from points group by name order by 2 desc").fetchall())
    print(ElementTree.fromstring("<a><b c='1'>x</b></a>").find("b").attrib, os.environ.get("HOME"), os.getcwd(), sys.version_info[0])


def others():
    """Other threads and processes, and what waits for them."""
    print(subprocess.run(["echo", "a"], capture_output=True, text=True, check=True).stdout)
    print(subprocess.run("echo b | cat; exit 3", shell=True, stdout=subprocess.PIPE).returncode, subprocess.getoutput("echo c"), os.system("true"))
    with ThreadPoolExecutor(max_workers=2) as pool:
        print(list(pool.map(fibonacci, range(5))), [f.result() for f in as_completed([pool.submit(str, 1)])])
    todo, lock = queue.Queue(), threading.Lock()

    def work():
        with lock:
            todo.put(time.time())

    threads = [threading.Thread(target=work) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(todo.qsize(), asyncio.run(ticks()))
    signal.signal(signal.SIGALRM, lambda *_: None)
    time.sleep(0.001)


def program():
    import calendar, ctypes, difflib, email.message, html.parser, http.server, importlib.metadata, multiprocessing, tarfile, timeit
    import unittest.mock, urllib.request, zoneinfo

    parser = argparse.ArgumentParser(description="a program")
    parser.add_argument("--count", type=int, default=3)
    print(parser.parse_args(["--count", "2"]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger(__name__).info("begun %s", 1)
    random.seed(1)
    print(random.randint(1, 6), random.choice("ab"), random.sample(range(9), 3), uuid.uuid4().version, len(secrets.token_hex(4)))
    print(ctypes.c_int(1), multiprocessing.cpu_count() > 0, inspect.signature(partial(fibonacci, 1)), shlex.split("a 'b c'"), urllib.parse.urlparse("https://a.b/c?d=e").query, platform.system())
    print(textwrap_of("one two three"), timeit.timeit("1", number=10) > 0, string.ascii_lowercase[:3], struct.pack("<I", 1), io.StringIO("a").read())
    try:
        input("? ")
    except EOFError as error:
        print(error)


def textwrap_of(text):
    import textwrap

    return textwrap.fill(textwrap.dedent(text), 8)


# In a process of its own, which leaves no thread counted, no generator seeded, and no handler installed.
child = os.fork()
if child == 0:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for part in (values, errors, files, others, program):
            part()
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
_, status = os.waitpid(child, 0)
if status:
    raise SystemExit("the exercise has failed")
