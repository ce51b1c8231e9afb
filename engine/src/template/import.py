# Imports packages in the interpreter that is about to be saved, and tells which of them are better left to the programs.
import importlib, importlib.metadata, json, os, site, sys

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
    return len(os.listdir("/proc/self/task"))


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


for folder in ("/packages/python", "/packages-added/python"):
    if os.path.isdir(folder) and folder not in sys.path:
        site.addsitedir(folder)
importlib.invalidate_caches()
unfit = []
for package in WANTED:
    reason = try_import(package)
    if reason:
        unfit.append((package, reason))
print()
print(json.dumps({"unfit": unfit}))
