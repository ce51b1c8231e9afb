//! An engine as the product makes it, from the image in the user's cache.

use std::path::PathBuf;
use std::time::Duration;

use sandbox_engine::{AcceleratorChoice, Engine, EngineConfig, Limits, OutputSink, Stream};
use sandbox_images::ImageStore;
use sandbox_packages::GatewayConfig;
use sandbox_store::CacheDir;

/// Takes the output as one text.
#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl OutputSink for Text {
    fn output(&mut self, _: Stream, text: &str) {
        self.0.push_str(text);
    }
}

/// TCG, since a trial of KVM is not what is tested; no VMs but those that the test asks for.
pub(crate) async fn engine(uses_templates: bool) -> Engine {
    let users = || directories::ProjectDirs::from("", "", "sandbox-mcp").unwrap().cache_dir().to_path_buf();
    let folder = std::env::var_os("SANDBOX_MCP_CACHE_DIR").map_or_else(users, PathBuf::from);
    let cache = CacheDir::new(folder, 10_000_000_000);
    let images = ImageStore::new(cache.clone());
    let config = EngineConfig {
        packages: GatewayConfig::new(cache.clone()),
        warm_sets: Vec::new(),
        image: tokio::task::spawn_blocking(move || images.load()).await.unwrap().unwrap(),
        qemu: std::env::var_os("SANDBOX_MCP_QEMU").map(PathBuf::from),
        accelerator: AcceleratorChoice::Tcg,
        warm_pool_size: 0,
        uses_templates,
        limits: Limits { vms: 2, memory_mb: 1_000_000, waiting: 8, wait: Duration::from_secs(300), sessions: 1 },
        cache,
    };
    Engine::start(config).await.unwrap()
}
