//! What a VM does before anybody's program comes, so that this need not be the first to do it.

use std::time::Duration;

use sandbox_schemas::limits::{STDERR_MAX_BYTES, STDOUT_MAX_BYTES};
use sandbox_schemas::wire::{Exit, GuestFrame, Stream};

use crate::capture::Capture;
use crate::error::VmError;
use crate::vm::{Program, Ready, within_time_of_its_own};
use crate::wire::unexpected;

impl Ready {
    /// Runs a program of ours in the interpreter that will run the next one.
    pub(crate) async fn rehearse(self, program: &Program, deadline: Duration) -> Result<Ready, VmError> {
        self.rehearse_to_hear(program, deadline, &mut String::new()).await
    }

    /// The same; what it writes to stdout is in `heard`, also when it fails.
    pub(crate) async fn rehearse_to_hear(
        mut self,
        program: &Program,
        deadline: Duration,
        heard: &mut String,
    ) -> Result<Ready, VmError> {
        let (mut stdout, mut stderr) = (Capture::new(STDOUT_MAX_BYTES), Capture::new(STDERR_MAX_BYTES));
        let process = self.machine.process_id();
        let rehearsal = async {
            self.machine.send(&program.0).await?;
            match self.machine.receive().await? {
                GuestFrame::Started(_) => {}
                other => return Err(unexpected("started", &other)),
            }
            loop {
                match self.machine.receive().await? {
                    GuestFrame::Output { stream: Stream::Stdout, bytes, .. } => heard.push_str(stdout.push(&bytes)),
                    GuestFrame::Output { stream: Stream::Stderr, bytes, .. } => drop(stderr.push(&bytes)),
                    GuestFrame::Finished(finished) => return Ok(finished.exit),
                    other => return Err(unexpected("output", &other)),
                }
            }
        };
        match within_time_of_its_own(process, deadline, rehearsal).await? {
            Exit::Code(0) => Ok(self),
            exit => {
                let last_words = stderr.finish(0).text;
                let last_line = last_words.trim_end().lines().next_back().unwrap_or_default();
                Err(VmError::Guest(format!("a rehearsal ended with {exit:?}: {last_line}")))
            }
        }
    }

    /// Says what is wished for of files, and waits until so many wishes are fulfilled.
    pub(crate) async fn rehearse_files(
        mut self,
        wishes: &[u8],
        count: usize,
        deadline: Duration,
    ) -> Result<Ready, VmError> {
        let process = self.machine.process_id();
        let transfers = async {
            self.machine.send(wishes).await?;
            let mut left = count;
            while left > 0 {
                match self.machine.receive().await? {
                    GuestFrame::Transferred { .. } => left -= 1,
                    GuestFrame::Started(_) | GuestFrame::Taken { .. } => {}
                    GuestFrame::Output { .. } | GuestFrame::Listed { .. } => {}
                    other => return Err(unexpected("files", &other)),
                }
            }
            Ok(())
        };
        within_time_of_its_own(process, deadline, transfers).await.map(|()| self)
    }
}
