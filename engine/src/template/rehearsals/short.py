# Modules that programs often begin with. None starts a thread; what `random` draws is drawn anew for each program.
import collections, dataclasses, datetime, functools, itertools, json, math, operator, os, pathlib, random, re, string
import sys, textwrap, time, traceback, typing


class Point:
    def __init__(self, x, y=0):
        self.x, self.y = x, y

    def __repr__(self):
        return f"Point({self.x!r}, {self.y:.2f})"


def walk(items, *rest, **named):
    for number, item in enumerate(items):
        yield number, item, sorted(named), len(rest)


print(6 * 7, Point(math.pi), [n**2 for n in range(3)], {"a": None}, list(walk("ab", 1, k=2)))
print(json.dumps({"a": [1, 2.5, "x"], "b": True}), json.loads('{"c": [null, {}]}'), os.getcwd(), time.time() > 0)
print("%s %d" % ("text", 5), "a,b".split(","), sum(sorted([3, 1, 2])), file=sys.stderr)
try:
    {}["missing"]
except KeyError as error:
    print("caught", error, len(traceback.format_exc()))
