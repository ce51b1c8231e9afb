//! A client that always has some calls under way.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{DEADLINE, Server, command, execute_request, initialize_params, request};
use crate::programs::{Expected, check, program};

/// VMs that wait.
pub(crate) const POOL: usize = 2;

/// Answers that come before what is cancelled late is.
const LATE: usize = 4;

pub(crate) struct Traffic {
    server: Server,
    at_once: usize,
    ran: usize,
    /// By id. What is cancelled at once is in none of them.
    under_way: HashMap<u64, Expected>,
    /// Ids, and after how many answers they are cancelled.
    to_cancel: Vec<(u64, usize)>,
    answered: usize,
    cancelled: usize,
    from_pool: usize,
    from_template: usize,
    booted: usize,
}

impl Traffic {
    pub(crate) fn start(at_once: usize) -> Traffic {
        let (pool, machines) = (POOL.to_string(), (at_once + POOL).to_string());
        let mut server =
            Server::start_as(command().args(["--warm-pool-size", &pool, "--max-concurrent-vms", &machines]));
        server.send(&request(0, "initialize", initialize_params("2025-11-25")));
        server.receive();
        Traffic {
            server,
            at_once,
            ran: 0,
            under_way: HashMap::new(),
            to_cancel: Vec::new(),
            answered: 0,
            cancelled: 0,
            from_pool: 0,
            from_template: 0,
            booted: 0,
        }
    }

    pub(crate) fn ran(&self) -> usize {
        self.ran
    }

    /// So many more runs, to their end.
    pub(crate) fn run(&mut self, count: usize) {
        let until = self.ran + count;
        while self.ran < until || !self.under_way.is_empty() {
            while self.ran < until && self.under_way.len() < self.at_once {
                self.begin();
            }
            // Those that never end are not waited for when nothing else is under way.
            let is_last = self.under_way.len() == self.to_cancel.len();
            let due = |(_, left): &(u64, usize)| *left == 0 || is_last;
            let (now, later) = std::mem::take(&mut self.to_cancel).into_iter().partition(due);
            self.to_cancel = later;
            let now: Vec<(u64, usize)> = now;
            for (id, _) in &now {
                self.under_way.remove(id);
                self.cancel(*id);
            }
            if now.is_empty() && !self.under_way.is_empty() {
                self.take_answer();
            }
        }
    }

    fn begin(&mut self) {
        let (arguments, expected) = program(self.ran);
        self.ran += 1;
        let id = self.ran as u64;
        self.server.send(&execute_request(id, arguments));
        match expected {
            Expected::Cancelled { at_once: true } => self.cancel(id),
            Expected::Cancelled { at_once: false } => {
                self.under_way.insert(id, expected);
                self.to_cancel.push((id, LATE));
            }
            _ => drop(self.under_way.insert(id, expected)),
        }
    }

    fn cancel(&mut self, id: u64) {
        self.cancelled += 1;
        let params = json!({"requestId": id});
        self.server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}));
    }

    fn take_answer(&mut self) {
        let response = self.server.receive();
        let expected = response["id"].as_u64().and_then(|id| self.under_way.remove(&id));
        check(&response, expected.unwrap_or_else(|| panic!("nobody has asked: {response}")));
        self.answered += 1;
        self.to_cancel.iter_mut().for_each(|(_, left)| *left = left.saturating_sub(1));
        let outcome: &Value = &response["result"]["structuredContent"];
        if outcome["warm_pool_hit"] == true {
            self.from_pool += 1;
        } else if outcome["template_hit"] == true {
            self.from_template += 1;
        } else if outcome.is_object() {
            self.booted += 1;
        }
    }

    /// Waits until nothing goes on: the pool is full, and every VM that has served is reaped. The server's process.
    pub(crate) fn settle(&mut self) -> u32 {
        self.server.wait_for_pool(POOL as u64);
        let until = Instant::now() + DEADLINE;
        while self.server.virtual_machines().len() != POOL {
            assert!(Instant::now() < until, "{} VMs are left", self.server.virtual_machines().len());
            thread::sleep(Duration::from_millis(50));
        }
        self.server.child.id()
    }

    pub(crate) fn counts(&self) -> String {
        let Traffic { ran, answered, cancelled, from_pool, from_template, booted, .. } = self;
        format!(
            "{ran} runs: {answered} answered as they must be ({from_pool} in VMs of the pool, {from_template} in clones, {booted} \
             booted), {cancelled} cancelled"
        )
    }
}
