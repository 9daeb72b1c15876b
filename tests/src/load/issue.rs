//! SVIDs, asked of `signet-ca` over its gRPC as engines ask for them.

use std::io::Error;
use std::time::Instant;

use anyhow::Result;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::exchange::{Exchanges, Log, gather};
use super::window::Span;
use super::{Window, deal};
use crate::ca::Ca;
use crate::netns;
use crate::svid::Asked;

/// Asks for one SVID after the other, `concurrency` at a time, on a connection per core; all of them for one key, so that
/// the client's own work is small.
///
/// # Errors
/// The CA is not reached, or refuses.
pub fn issue(ca: &Ca, asked: &Asked, concurrency: usize, window: &Window) -> Result<Exchanges> {
    netns::enter(&ca.host().netns().path(), || {
        let hands = deal(vec![(); concurrency]);
        let crew = hands.into_iter().map(|hand| move |span| again(ca, asked, hand.len(), span));
        let (logs, cpu_seconds) = window.open(crew.collect())?;
        Ok(gather(logs, cpu_seconds)?)
    })?
}

fn again(ca: &Ca, asked: &Asked, concurrency: usize, span: Span) -> std::io::Result<Log> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = ca.channel().await.map_err(Error::other)?;
        let mut asking: JoinSet<Result<Vec<Answered>>> =
            (0..concurrency).map(|_| one_by_one(channel.clone(), asked.clone(), span)).collect();
        let mut log = Log::of(span);
        while let Some(answers) = asking.join_next().await {
            for (since, now) in answers.map_err(Error::other)?.map_err(Error::other)? {
                log.answered(since, now);
            }
        }
        Ok(log)
    })
}

/// When it was asked, and when it was answered.
type Answered = (Instant, Instant);

async fn one_by_one(channel: Channel, asked: Asked, span: Span) -> Result<Vec<Answered>> {
    let mut answers = Vec::new();
    loop {
        let since = Instant::now();
        if since >= span.end {
            return Ok(answers);
        }
        asked.ask(channel.clone()).await?;
        answers.push((since, Instant::now()));
    }
}
