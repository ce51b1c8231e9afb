//! What a template depends on. Whatever differs makes another template.

use std::path::Path;

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::image::Digest;
use sandbox_schemas::template::TEMPLATE_FORMAT;
use sandbox_schemas::wire::PROTOCOL_VERSION;
use sandbox_store::KeyHasher;

/// Raised with each change of how a template is made that nothing else in the key shows.
const RECIPE_VERSION: u32 = 4;

/// Everything that decides what is in a template, and which QEMU can restore it.
#[derive(Debug, Clone)]
pub(crate) struct TemplateInputs {
    pub(crate) kernel_sha256: Digest,
    pub(crate) root_sha256: Digest,
    /// The agent, its runners included.
    pub(crate) initrd_sha256: Digest,
    /// All that QEMU says of its version: distributions patch without changing the number.
    pub(crate) qemu: String,
    pub(crate) accelerator: Accelerator,
    /// The host's processor, of whose features the guest may have taken note.
    pub(crate) cpu: String,
    /// What else of the host a template depends on, where KVM is used: nothing under TCG, which brings its own processor.
    pub(crate) kvm: Vec<String>,
    /// QEMU's arguments: the machine, its devices, its memory.
    pub(crate) arguments: Vec<String>,
    /// The programs that it has rehearsed.
    pub(crate) rehearsals: Vec<String>,
    /// What its package layer hashes to, if it has one.
    pub(crate) layer: Option<Digest>,
}

impl TemplateInputs {
    pub(crate) fn key(&self) -> Digest {
        let hasher = KeyHasher::new("template")
            .field("format", &TEMPLATE_FORMAT.to_le_bytes())
            .field("recipe", &RECIPE_VERSION.to_le_bytes())
            .field("protocol", &PROTOCOL_VERSION.to_le_bytes())
            .field("kernel", &self.kernel_sha256.0)
            .field("root", &self.root_sha256.0)
            .field("initrd", &self.initrd_sha256.0)
            .field("qemu", self.qemu.as_bytes())
            .field("accelerator", self.accelerator.name().as_bytes())
            .field("cpu", self.cpu.as_bytes());
        let hasher = self.kvm.iter().fold(hasher, |hasher, text| hasher.field("kvm", text.as_bytes()));
        let arguments = self.arguments.iter().fold(hasher, |hasher, text| hasher.field("argument", text.as_bytes()));
        let hasher = self.rehearsals.iter().fold(arguments, |hasher, text| hasher.field("rehearsal", text.as_bytes()));
        self.layer.iter().fold(hasher, |hasher, layer| hasher.field("layer", &layer.0)).finish()
    }
}

/// The processor's name and features.
pub(crate) fn host_cpu() -> String {
    cpu_lines(Path::new("/"), &["model name", "flags"]).join("\n")
}

/// What decides which device state KVM saves and takes, if it is used. `root` is the host's. The kernel says which registers
/// there are and what they may hold, its parameters what of them a guest sees (`ignore_msrs`, `enable_pmu`, `nested`), and
/// microcode adds to them.
pub(crate) fn host_kvm(accelerator: Accelerator, root: &Path) -> Vec<String> {
    if accelerator != Accelerator::Kvm {
        return Vec::new();
    }
    let wanted = ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "vmx flags"];
    let mut facts = cpu_lines(root, &wanted);
    let kernel = ["osrelease", "version"].map(|name| root.join("proc/sys/kernel").join(name));
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_kvm = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"kvm"));
    let modules = entries(&root.join("sys/module")).filter(|path| is_kvm(path));
    let mut parameters: Vec<_> = modules.flat_map(|module| entries(&module.join("parameters"))).collect();
    parameters.sort();
    facts.extend(kernel.into_iter().chain(parameters).map(|path| {
        // One that this user may not read is known by its name alone.
        let value = std::fs::read_to_string(&path).unwrap_or_default();
        format!("{}: {}", path.strip_prefix(root).unwrap_or(&path).display(), value.trim())
    }));
    facts
}

/// Lines of the first processor's description, by what stands before the colon.
fn cpu_lines(root: &Path, wanted: &[&str]) -> Vec<String> {
    let text = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let first = text.lines().take_while(|line| !line.is_empty());
    let is_wanted = |line: &&str| line.split_once(':').is_some_and(|(name, _)| wanted.contains(&name.trim()));
    first.filter(is_wanted).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> TemplateInputs {
        TemplateInputs {
            kernel_sha256: Digest([1; 32]),
            root_sha256: Digest([2; 32]),
            initrd_sha256: Digest([3; 32]),
            qemu: "QEMU emulator version 7.2".into(),
            accelerator: Accelerator::Tcg,
            cpu: "a processor".into(),
            kvm: vec!["proc/sys/kernel/osrelease: 6.1.0".into()],
            arguments: vec!["-m".into(), "256M".into()],
            rehearsals: vec!["print(1)".into()],
            layer: None,
        }
    }

    #[test]
    fn every_input_makes_another_template() {
        let changes: [fn(&mut TemplateInputs); 16] = [
            |i| i.kernel_sha256.0[0] ^= 1,
            |i| i.root_sha256.0[31] ^= 1,
            |i| i.initrd_sha256.0[7] ^= 1,
            |i| std::mem::swap(&mut i.kernel_sha256, &mut i.root_sha256),
            |i| i.qemu.push_str(" (Debian)"),
            |i| i.accelerator = Accelerator::Kvm,
            |i| i.cpu.push('2'),
            |i| i.kvm[0].push('1'),
            |i| i.kvm.push("sys/module/kvm/parameters/ignore_msrs: Y".into()),
            |i| i.kvm.clear(),
            |i| i.arguments[1] = "512M".into(),
            |i| i.arguments.push(String::new()),
            |i| i.rehearsals.clear(),
            |i| i.layer = Some(Digest([4; 32])),
            |i| i.layer = Some(Digest([5; 32])),
            // The same text in another field.
            |i| i.arguments.append(&mut i.rehearsals),
        ];
        let mut keys = vec![inputs().key()];
        for change in changes {
            let mut changed = inputs();
            change(&mut changed);
            keys.push(changed.key());
        }
        assert_eq!(inputs().key(), keys[0]);
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count, "two different inputs have the same key");
    }

    #[test]
    fn this_host_has_a_processor() {
        let lines: Vec<_> = host_cpu().lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
        assert_eq!(lines, ["model name", "flags"]);
        assert!(
            host_kvm(Accelerator::Kvm, Path::new("/"))
                .iter()
                .any(|fact| fact.starts_with("proc/sys/kernel/osrelease: "))
        );
    }

    /// A host's files, as far as they are looked at, and some that are not.
    fn host(folder: &Path, changed: Option<(&str, &str)>) -> Vec<String> {
        const CPU: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\n\
                           model name\t: Intel(R) Xeon(R)\nstepping\t: 7\nmicrocode\t: 0x5003604\ncpu MHz\t\t: 2400.001\n\
                           flags\t\t: fpu vme vmx\nvmx flags\t: vnmi ept\nbogomips\t: 4800.00\n\nprocessor\t: 1\n\
                           microcode\t: 0x1\n";
        let files = [
            ("proc/cpuinfo", CPU),
            ("proc/sys/kernel/osrelease", "6.1.0-37-amd64\n"),
            ("proc/sys/kernel/version", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1\n"),
            ("sys/module/kvm/parameters/ignore_msrs", "N\n"),
            ("sys/module/kvm_intel/parameters/nested", "Y\n"),
            ("sys/module/kvm_intel/refcnt", "3\n"),
            ("sys/module/loop/parameters/max_loop", "0\n"),
        ];
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = changed.filter(|(of, _)| *of == name).map_or(text, |(_, text)| text);
            std::fs::write(path, text).unwrap();
        }
        host_kvm(Accelerator::Kvm, folder)
    }

    #[test]
    fn what_kvm_depends_on_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let found = host(folder.path(), None);
        let expected = [
            "vendor_id\t: GenuineIntel",
            "cpu family\t: 6",
            "model\t\t: 85",
            "model name\t: Intel(R) Xeon(R)",
            "stepping\t: 7",
            "microcode\t: 0x5003604",
            "flags\t\t: fpu vme vmx",
            "vmx flags\t: vnmi ept",
            "proc/sys/kernel/osrelease: 6.1.0-37-amd64",
            "proc/sys/kernel/version: #1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1",
            "sys/module/kvm/parameters/ignore_msrs: N",
            "sys/module/kvm_intel/parameters/nested: Y",
        ];
        assert_eq!(found, expected);
        for (name, text, matters) in [
            ("proc/sys/kernel/osrelease", "6.1.0-38-amd64\n", true),
            ("proc/sys/kernel/version", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.147-1\n", true),
            ("sys/module/kvm/parameters/ignore_msrs", "Y\n", true),
            ("sys/module/kvm_intel/parameters/nested", "N\n", true),
            ("proc/cpuinfo", "microcode\t: 0x5003605\n", true),
            ("sys/module/kvm_intel/refcnt", "4\n", false),
            ("sys/module/loop/parameters/max_loop", "8\n", false),
        ] {
            assert_eq!(host(folder.path(), Some((name, text))) != found, matters, "{name}");
        }
        host(folder.path(), None);
        std::fs::remove_file(folder.path().join("sys/module/kvm_intel/parameters/nested")).unwrap();
        let without = host_kvm(Accelerator::Kvm, folder.path());
        assert_eq!(without, found[..found.len() - 1], "another module is loaded, or none");
        assert!(host_kvm(Accelerator::Tcg, folder.path()).is_empty(), "what is not used does not count");
    }
}
