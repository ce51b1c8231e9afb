# Imports packages in the interpreter that is about to be saved, and tells which of them are better left to the programs: a line of JSON
# for each thing. `kept` is this interpreter's from one such program to the next.
import glob, importlib, importlib.metadata, json, os, site, sys, threading

WANTED = ["PACKAGES"]
# What programs import of a package beside the package itself.
PARTS = {"matplotlib": ["matplotlib.pyplot"]}


def names_of(package):
    """The modules at the top of a distribution that are meant to be imported."""
    found = []
    for file in importlib.metadata.distribution(package).files or ():
        top = file.parts[0]
        name = top.removesuffix(".py") if len(file.parts) == 1 else top
        if len(file.parts) == 1 and not top.endswith(".py"):
            name = top.split(".")[0] if top.endswith(".so") else ""
        is_module = name.isidentifier() and not name.startswith("_") and name not in ("bin", "test", "tests")
        if is_module and name not in found:
            found.append(name)
    return found + PARTS.get(package, [])


def threads():
    """Python's own: those of libraries (pyarrow's memory pool has one) sleep, are saved with all else, and nobody waits for them."""
    return threading.active_count()


def processes():
    """Of this user: the kernel starts threads of its own when it likes."""
    return sum(is_ours(name) for name in os.listdir("/proc") if name.isdigit())


def is_ours(process):
    try:
        return os.stat(f"/proc/{process}").st_uid == os.getuid()
    except FileNotFoundError:
        return False  # It has just ended.


def try_import(package):
    """Why it should not be part of what is saved; nothing when it may."""
    before = threads(), processes()
    try:
        for name in names_of(package):
            importlib.import_module(name)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    # They would go on in every clone, and a program would wait for them at its end.
    if threads() > before[0]:
        return "it starts a thread when it is imported"
    if processes() > before[1]:
        return "it starts a process when it is imported"


class Missing:
    """The last finder: what it is asked for, nobody has. A package that has met that may have settled to do without."""

    def __init__(self, sought):
        self.sought = sought

    def find_spec(self, name, path=None, target=None):
        self.sought.add(name.partition(".")[0])

    def find_distributions(self, context):
        # Without a name, all are looked through: one more would have been found.
        self.sought.add(ALL if context.name is None else normal(context.name))
        return ()

    def iter_modules(self, prefix=""):
        self.sought.add(ALL)
        return ()


ALL = "*"


def normal(name):
    return importlib.metadata.Prepared.normalize(name)


def names_in(folder):
    """What can be asked for of what is in a folder: modules, and distributions."""
    for name in os.listdir(folder):
        if name.endswith(".dist-info"):
            yield normal(name.removesuffix(".dist-info").rpartition("-")[0])
        else:
            yield name.partition(".")[0]


def say(what):
    # A package may have left its line open.
    print("\n" + json.dumps(what), flush=True)


def main():
    # The parts of the layer that were not there when this was done before.
    added = [folder for folder in glob.glob("/packages*/python") if folder not in sys.path]
    sought = kept.setdefault("sought", set())
    if sought and added:
        there = {name for folder in added for name in names_in(folder)}
        # It looks through the folders by itself, and keeps what it has seen.
        if "pkg_resources" in sys.modules:
            sought.add(ALL)
        missed = sorted(sought & (there | {ALL}))
        if missed:
            say({"missed": missed})
            return
    # As a fresh interpreter has them: see sandbox-packages.pth.
    for folder in sorted(added, key=lambda folder: (len(folder), folder)):
        site.addsitedir(folder)
    importlib.invalidate_caches()
    missing = Missing(sought)
    sys.meta_path.append(missing)
    for package in WANTED:
        say({"importing": package})
        reason = try_import(package)
        if reason:
            say({"unfit": {"name": package, "reason": reason}})
    sys.meta_path.remove(missing)
    say("done")


main()
