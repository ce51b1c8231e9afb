//! What a template depends on. Whatever differs makes another template.

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
        let arguments = self.arguments.iter().fold(hasher, |hasher, text| hasher.field("argument", text.as_bytes()));
        let hasher = self.rehearsals.iter().fold(arguments, |hasher, text| hasher.field("rehearsal", text.as_bytes()));
        self.layer.iter().fold(hasher, |hasher, layer| hasher.field("layer", &layer.0)).finish()
    }
}

/// The processor's name and features.
pub(crate) fn host_cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_wanted = |line: &&str| line.starts_with("model name") || line.starts_with("flags");
    text.lines().take_while(|line| !line.is_empty()).filter(is_wanted).collect::<Vec<_>>().join("\n")
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
            arguments: vec!["-m".into(), "256M".into()],
            rehearsals: vec!["print(1)".into()],
            layer: None,
        }
    }

    #[test]
    fn every_input_makes_another_template() {
        let changes: [fn(&mut TemplateInputs); 13] = [
            |i| i.kernel_sha256.0[0] ^= 1,
            |i| i.root_sha256.0[31] ^= 1,
            |i| i.initrd_sha256.0[7] ^= 1,
            |i| std::mem::swap(&mut i.kernel_sha256, &mut i.root_sha256),
            |i| i.qemu.push_str(" (Debian)"),
            |i| i.accelerator = Accelerator::Kvm,
            |i| i.cpu.push('2'),
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
        assert!(host_cpu().contains("flags"));
    }
}
