//! What would help a program that has failed, where that is certain: a line for the model that wrote it.

use sandbox_packages::project_of;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::language::Language;
use sandbox_schemas::limits::MEMORY_MAX_MB;
use sandbox_schemas::outcome::ExecuteOutcome;

/// What is looked at of what a program has said: its last words.
const LAST_LINES: usize = 40;

/// What resolvers and kernels say where there is no network.
const NO_NETWORK: [&str; 10] = [
    "Temporary failure in name resolution",
    "Name or service not known",
    "No address associated with hostname",
    "Failed to resolve '",
    "Could not resolve host",
    "Could not resolve hostname",
    "Network is unreachable",
    "getaddrinfo EAI_AGAIN",
    "getaddrinfo ENOTFOUND",
    "connect ENETUNREACH",
];

/// Modules that are a program's own more often than those of the projects of these names.
const OWN: [&str; 20] = [
    "api",
    "app",
    "base",
    "client",
    "common",
    "config",
    "constants",
    "core",
    "data",
    "db",
    "helpers",
    "lib",
    "logger",
    "main",
    "models",
    "server",
    "settings",
    "tools",
    "types",
    "utils",
];

/// What is known of a program, for when it has failed.
#[derive(Debug)]
pub(super) struct Advisor {
    language: Language,
    packages: Vec<String>,
    /// Of a notebook, which no interpreter knows.
    command: Option<&'static str>,
    has_input: bool,
    is_in_session: bool,
    memory_mb: u64,
}

impl Advisor {
    /// Looks at a program before it runs.
    pub(super) fn of(input: &ExecuteInput) -> Advisor {
        let is_of = |line: &str, command: &str| line.trim_start().starts_with(command);
        let commands = if input.language == Language::Python { &["!pip", "%pip"][..] } else { &[] };
        Advisor {
            language: input.language,
            packages: input.packages.clone(),
            command: commands.iter().find(|command| input.code.lines().any(|line| is_of(line, command))).copied(),
            has_input: !input.stdin.is_empty(),
            is_in_session: input.session_id.is_some(),
            memory_mb: input.memory_mb,
        }
    }

    /// Advice, if there is any.
    pub(super) fn advice(&self, outcome: &ExecuteOutcome) -> Option<String> {
        if outcome.exit_code == 0 || outcome.timed_out || outcome.out_of_memory {
            return None;
        }
        let mut lines: Vec<&str> = outcome.stderr.lines().rev().take(LAST_LINES).collect();
        lines.reverse();
        let says = |words: &str| lines.iter().any(|line| line.contains(words));
        if let Some(command) = self.command.filter(|_| says("SyntaxError: ")) {
            return Some(format!("{command} is a notebook's command: name packages in packages"));
        }
        if let Some(project) = lines.iter().rev().find_map(|line| self.missing(line)) {
            return Some(format!("packages: [{project:?}] has it"));
        }
        if says("EOFError: EOF when reading a line") && !self.has_input {
            return Some("stdin was empty: give it what input() shall read".into());
        }
        if NO_NETWORK.iter().any(|words| says(words)) {
            return Some("there is no network: name packages in packages, and give data as files".into());
        }
        let is_out_of_room = says("No space left on device") || says("ENOSPC") || says("Disk quota exceeded");
        let is_out_of_memory =
            lines.last().is_some_and(|line| *line == "MemoryError" || line.starts_with("MemoryError: "))
                || says("numpy._core._exceptions._ArrayMemoryError")
                || says("JavaScript heap out of memory");
        match (is_out_of_memory || is_out_of_room, self.is_in_session) {
            (true, false) if self.memory_mb < MEMORY_MAX_MB => {
                Some(format!("memory_mb may be up to {MEMORY_MAX_MB}; room for files grows with it"))
            }
            (true, true) => {
                Some(format!("open_session takes memory_mb, up to {MEMORY_MAX_MB}; room for files grows with it"))
            }
            _ => None,
        }
    }

    /// The project that has a module which was looked for in vain.
    fn missing(&self, line: &str) -> Option<String> {
        let module = match self.language {
            Language::Python => quoted(line.strip_prefix("ModuleNotFoundError: No module named ")?)?,
            Language::Javascript => {
                let words = ["Cannot find module ", "Cannot find package "];
                package(quoted(words.iter().find_map(|words| line.split_once(words))?.1)?)?
            }
            Language::Shell => return None,
        };
        // With a dot there is a package, which has no such module.
        let is_whole = self.language != Language::Python || !module.contains('.');
        let project = project_of(self.language, module).filter(|_| is_whole && !OWN.contains(&module))?;
        (!self.packages.iter().any(|package| package.starts_with(&project))).then_some(project)
    }
}

/// The package of what is imported by a name that is no path.
fn package(specifier: &str) -> Option<&str> {
    if specifier.starts_with(['.', '/', '#']) || specifier.contains(':') {
        return None;
    }
    let slashes = if specifier.starts_with('@') { 2 } else { 1 };
    let end = specifier.match_indices('/').nth(slashes - 1).map_or(specifier.len(), |(at, _)| at);
    Some(&specifier[..end])
}

fn quoted(words: &str) -> Option<&str> {
    words.strip_prefix('\'')?.split('\'').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::outcome::Timing;

    fn ended(exit_code: i32, stderr: &str) -> ExecuteOutcome {
        serde_json::from_value(serde_json::json!({
            "exit_code": exit_code, "stdout": "", "stderr": stderr, "timed_out": false, "truncated": false,
            "stdout_bytes": 0, "stderr_bytes": stderr.len(), "invalid_utf8": false, "out_of_memory": false,
            "timing": Timing::default(), "execution_time_ms": 1.0, "warm_pool_hit": true, "template_hit": true,
            "accelerator": "tcg",
        }))
        .unwrap()
    }

    fn told(language: Language, code: &str, stderr: &str) -> Option<String> {
        Advisor::of(&ExecuteInput::new(language, code)).advice(&ended(1, stderr))
    }

    #[test]
    fn a_module_is_found_by_the_name_of_its_project() {
        let python = |module: &str| {
            let said =
                format!("Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named '{module}'\n");
            told(Language::Python, "import x", &said)
        };
        assert_eq!(python("sklearn").unwrap(), "packages: [\"scikit-learn\"] has it");
        assert_eq!(python("yaml").unwrap(), "packages: [\"pyyaml\"] has it");
        for none in ["my_own_helpers_of_nobody", "utils", "numpy.linalg", "sklearn.externals"] {
            assert_eq!(python(none), None, "{none}");
        }
        let node = |said: &str| told(Language::Javascript, "", said);
        assert_eq!(
            node("Error: Cannot find module 'lodash/map'\nRequire stack:").unwrap(),
            "packages: [\"lodash\"] has it"
        );
        assert_eq!(
            node("Error [ERR_MODULE_NOT_FOUND]: Cannot find package '@babel/core' imported from /a").unwrap(),
            "packages: [\"@babel/core\"] has it"
        );
        assert_eq!(node("Error: Cannot find module './lodash'"), None);
    }

    #[test]
    fn usual_mistakes_are_known() {
        let python = |code: &str, said: &str| told(Language::Python, code, said).unwrap_or_default();
        assert!(python("x = input()", "EOFError: EOF when reading a line\n").starts_with("stdin"));
        assert!(
            python("", "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>")
                .contains("network")
        );
        assert!(python("", "OSError: [Errno 28] No space left on device").starts_with("memory_mb"));
        assert!(python("", "MemoryError\n").starts_with("memory_mb"));
        assert!(python("import os\n!pip install requests", "SyntaxError: invalid syntax").contains("packages"));
        assert_eq!(python("raise ValueError('MemoryError')", "ValueError: MemoryError\n"), "");
    }

    #[test]
    fn a_program_that_has_not_failed_needs_none() {
        let input = ExecuteInput::new(Language::Python, "");
        assert_eq!(Advisor::of(&input).advice(&ended(0, "MemoryError\n")), None);
    }
}
