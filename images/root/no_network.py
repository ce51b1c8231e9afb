"""Refuses at once what only an index has, with what to do instead. pip takes 10 s under TCG to say that there are no versions of it,
most of them to load itself. What this does not understand, and all that may do without an index, is left to pip."""
import os
import re
import sys

# Options that have no value, or have it with them.
PLAIN = re.compile(
    r"-[qUvI]+|--(quiet|upgrade|user|system|pre|verbose|force-reinstall|ignore-installed|no-(cache-dir|cache|deps|input|color|build-isolation|"
    r"warn-script-location)|break-system-packages|prefer-binary|disable-pip-version-check|(only-binary|progress-bar|root-user-action)=.*)"
)
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(\[.*\])?\s*([<>=!~;].*)?")
SETTING = re.compile(r"(PIP|UV)_.*(INDEX|FIND_LINKS|CONFIG)")
ARCHIVE = re.compile(r"\.(whl|zip|t?gz|tar|bz2|tbz|xz|txz)$")


def has_index():
    # A route says that there is a network; an installer has none, and its index nevertheless.
    with open("/proc/net/route") as routes:
        if len(routes.readlines()) > 1:
            return True
    files = ("~/.config/pip/pip.conf", "~/.pip/pip.conf", "~/.config/uv/uv.toml")
    return any(map(SETTING.match, os.environ)) or any(os.path.exists(os.path.expanduser(file)) for file in files)


def named(arguments):
    """The requirements that are asked for by name; nothing if there is anything else."""
    names, rest = [], iter(arguments)
    for argument in rest:
        if argument in ("-r", "--requirement"):
            with open(next(rest)) as file:
                lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in file]
            names += [line for line in lines if line]
        elif argument.startswith("-"):
            if not PLAIN.fullmatch(argument):
                return []
        else:
            names.append(argument)
    if all(REQUIREMENT.fullmatch(name) and not ARCHIVE.search(name) for name in names):
        return names
    return []


def is_installed(requirement):
    # Whether the version will do is for pip to say.
    name = normalized(REQUIREMENT.fullmatch(requirement)[1])
    folders = filter(os.path.isdir, sys.path)
    return any(
        file.endswith((".dist-info", ".egg-info")) and normalized(file.split("-")[0].removesuffix(".egg")) == name
        for folder in folders
        for file in os.listdir(folder)
    )


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def check(tool, arguments):
    """Ends the process if what is to be installed cannot be."""
    if arguments[:1] not in (["install"], ["download"]) or has_index():
        return
    try:
        missing = [requirement for requirement in named(arguments[1:]) if not is_installed(requirement)]
    except (OSError, StopIteration, UnicodeDecodeError):
        # A file that cannot be read, an option without a value.
        return
    if missing:
        packages = ", ".join('"' + requirement.replace('"', "'") + '"' for requirement in missing)
        sys.exit(f'{tool}: there is no network here: call execute_code with language "python" and packages: [{packages}]')


if __name__ == "__main__":
    check(sys.argv[1], sys.argv[2:])
