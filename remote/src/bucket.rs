//! The bucket, through Amazon's client: the few operations that are needed, and what their failures mean.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use tokio::sync::OnceCell;

use crate::config::S3Config;
use crate::outgoing::{Outgoing, Slicing};

/// Where the bucket is in a service that is not Amazon's and has no regions: anything will do.
const ANY_REGION: &str = "us-east-1";

/// A request is made at most so often, a tenth of a second and more apart, at random.
const ATTEMPTS: u32 = 2;
const BACKOFF: Duration = Duration::from_millis(100);

/// Pages of a listing that are looked at, of 1000 names each.
const PAGES_MAX: usize = 20;

/// Why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BucketError {
    /// There is no such object.
    #[error("there is no such object")]
    Missing,
    /// What was to be so is not: there is one already, or it is another than it was.
    #[error("there is such an object already")]
    Changed,
    /// It is longer than what is ours. Here is its tag.
    #[error("it has more than {limit_bytes} bytes")]
    TooLong {
        /// What is ours.
        limit_bytes: usize,
        /// Tells it from what may be there later.
        tag: Option<String>,
    },
    /// The service does not do such things, and has done nothing.
    #[error("{0}")]
    Unsupported(String),
    /// The service refuses, and has done nothing.
    #[error("{0}")]
    Refused(String),
    /// The service cannot be reached, is too slow, or has failed.
    #[error("{0}")]
    Failed(String),
}

/// What has to be so for an object to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Whatever there is.
    None,
    /// There is no such object.
    Missing,
    /// The one that is there has this tag.
    Tag(String),
}

/// A small object.
pub(crate) struct Object {
    pub(crate) bytes: Vec<u8>,
    /// Changes with its content. Every service that is known has one.
    pub(crate) tag: Option<String>,
}

/// An object, or a range of it, that is coming.
pub(crate) struct Coming {
    /// How many bytes the service says there are.
    pub(crate) length: u64,
    pub(crate) tag: Option<String>,
    pub(crate) body: ByteStream,
}

/// A bucket. Its client is made when it is first used: finding credentials can take time.
#[derive(Debug)]
pub(crate) struct Bucket {
    name: String,
    region: Option<String>,
    endpoint_url: Option<String>,
    force_path_style: bool,
    connect: Duration,
    patience: Duration,
    sent: Arc<AtomicU64>,
    client: OnceCell<Client>,
}

impl Bucket {
    /// A bucket of which every request is answered within `patience`, or from when the last of it has gone out. `sent` counts
    /// what goes out. To be used in one runtime only.
    pub(crate) fn new(config: &S3Config, patience: Duration, sent: Arc<AtomicU64>) -> Bucket {
        Bucket {
            name: config.bucket.clone(),
            region: config.region.clone(),
            endpoint_url: config.endpoint_url.clone(),
            force_path_style: config.force_path_style,
            connect: config.timing.connect,
            patience,
            sent,
            client: OnceCell::new(),
        }
    }

    async fn client(&self) -> &Client {
        self.client.get_or_init(|| self.connect()).await
    }

    async fn connect(&self) -> Client {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(self.connect)
            .read_timeout(self.patience)
            .operation_attempt_timeout(self.patience)
            .build();
        let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(BACKOFF);
        // By the host's own certificates, through the proxy that the usual variables name.
        let http = Builder::new().build_with_connector_fn(|settings, components| {
            let mut connector = Connector::builder();
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
            connector.set_proxy_config(Some(ProxyConfig::from_env()));
            connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build()
        });
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(retries)
            // It does not wait for an answer to what has gone out, and for 20 s where whoever fetches does not wait.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // We hash all there is; other services than Amazon's do not know its checksums.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(url) = &self.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        let region = self.region.clone().or_else(|| self.region_elsewhere());
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        let config = loader.load().await;
        let config = aws_sdk_s3::config::Builder::from(&config).force_path_style(self.force_path_style);
        Client::from_conf(config.build())
    }

    /// Asking Amazon's machines for their region makes no sense where the bucket is not Amazon's.
    fn region_elsewhere(&self) -> Option<String> {
        self.endpoint_url.as_ref()?;
        let set = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(|name| std::env::var(name).ok());
        Some(set.unwrap_or_else(|| ANY_REGION.into()))
    }

    /// Reads a small object. One that is longer than `limit_bytes` is none of ours.
    pub(crate) async fn get(&self, key: &str, limit_bytes: usize) -> Result<Object, BucketError> {
        let Coming { length, tag, mut body } = self.open(key, None).await?;
        if length > limit_bytes as u64 {
            return Err(BucketError::TooLong { limit_bytes, tag });
        }
        let mut bytes = Vec::new();
        while let Some(piece) = next(&mut body).await? {
            if bytes.len() + piece.len() > limit_bytes {
                return Err(BucketError::TooLong { limit_bytes, tag });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Object { bytes, tag })
    }

    /// An object's bytes from `first` to `last`, or all.
    pub(crate) async fn open(&self, key: &str, range: Option<(u64, u64)>) -> Result<Coming, BucketError> {
        let range = range.map(|(first, last)| format!("bytes={first}-{last}"));
        let request = self.client().await.get_object().bucket(&self.name).key(key).set_range(range);
        let object = request.send().await.map_err(|error| failure(&error))?;
        let length = object.content_length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        Ok(Coming { length, tag: object.e_tag, body: object.body })
    }

    /// Writes an object. Not every service heeds the condition: some refuse it, some write whatever it says.
    pub(crate) async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<(), BucketError> {
        let request = self.client().await.put_object().bucket(&self.name).key(key).body(bytes.into());
        let request = match condition {
            Condition::None => request,
            Condition::Missing => request.if_none_match("*"),
            Condition::Tag(tag) => request.if_match(tag),
        };
        let outgoing = Outgoing::new(self.sent.clone());
        let request = request.customize().interceptor(Slicing(outgoing.clone())).config_override(untimed());
        self.while_it_moves(&outgoing, request.send()).await.map(drop)
    }

    /// Begins an object that is sent in pieces.
    pub(crate) async fn begin(&self, key: &str) -> Result<String, BucketError> {
        let request = self.client().await.create_multipart_upload().bucket(&self.name).key(key);
        let begun = request.send().await.map_err(|error| failure(&error))?;
        begun.upload_id.ok_or_else(|| BucketError::Failed("an upload has no id".into()))
    }

    /// Sends a piece; the first has number 1.
    pub(crate) async fn piece(
        &self,
        key: &str,
        upload: &str,
        number: i32,
        bytes: Vec<u8>,
    ) -> Result<CompletedPart, BucketError> {
        let request = self.client().await.upload_part().bucket(&self.name).key(key).upload_id(upload);
        let outgoing = Outgoing::new(self.sent.clone());
        let request = request.part_number(number).body(bytes.into()).customize();
        let request = request.interceptor(Slicing(outgoing.clone())).config_override(untimed());
        let sent = self.while_it_moves(&outgoing, request.send()).await?;
        Ok(CompletedPart::builder().set_e_tag(sent.e_tag).part_number(number).build())
    }

    /// Makes an object of its pieces.
    pub(crate) async fn finish(
        &self,
        key: &str,
        upload: &str,
        mut pieces: Vec<CompletedPart>,
    ) -> Result<(), BucketError> {
        pieces.sort_by_key(|piece| piece.part_number);
        let pieces = CompletedMultipartUpload::builder().set_parts(Some(pieces)).build();
        let request = self.client().await.complete_multipart_upload().bucket(&self.name).key(key).upload_id(upload);
        request.multipart_upload(pieces).send().await.map(drop).map_err(|error| failure(&error))
    }

    /// Gives an object up whose pieces are not all there.
    pub(crate) async fn abort(&self, key: &str, upload: &str) -> Result<(), BucketError> {
        let request = self.client().await.abort_multipart_upload().bucket(&self.name).key(key).upload_id(upload);
        request.send().await.map(drop).map_err(|error| failure(&error))
    }

    /// Removes objects, one by one where the service cannot remove several at once.
    pub(crate) async fn remove(&self, keys: &[String]) -> Result<(), BucketError> {
        match self.remove_at_once(keys).await {
            Err(BucketError::Unsupported(_) | BucketError::Refused(_)) => {}
            removed => return removed,
        }
        for key in keys {
            let request = self.client().await.delete_object().bucket(&self.name).key(key);
            request.send().await.map_err(|error| failure(&error))?;
        }
        Ok(())
    }

    async fn remove_at_once(&self, keys: &[String]) -> Result<(), BucketError> {
        let malformed = |error: aws_sdk_s3::error::BuildError| BucketError::Failed(error.to_string());
        let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(key).build());
        let objects = objects.collect::<Result<Vec<_>, _>>().map_err(malformed)?;
        let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build().map_err(malformed)?;
        let request = self.client().await.delete_objects().bucket(&self.name).delete(delete);
        request.send().await.map(drop).map_err(|error| failure(&error))
    }

    /// The folders right below `prefix`, as whole keys with a slash at their end.
    pub(crate) async fn folders(&self, prefix: &str) -> Result<Vec<String>, BucketError> {
        let mut folders = Vec::new();
        let mut token = None;
        for _ in 0..PAGES_MAX {
            let request = self.client().await.list_objects_v2().bucket(&self.name).prefix(prefix).delimiter("/");
            let page = request.set_continuation_token(token).send().await.map_err(|error| failure(&error))?;
            folders.extend(page.common_prefixes.unwrap_or_default().into_iter().filter_map(|found| found.prefix));
            token = page.next_continuation_token;
            if token.is_none() {
                break;
            }
        }
        Ok(folders)
    }

    /// A request that takes as long as it takes, if anything of it moves.
    async fn while_it_moves<T, E>(
        &self,
        outgoing: &Outgoing,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, BucketError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        tokio::select! {
            done = request => done.map_err(|error| failure(&error)),
            () = outgoing.stalled(self.patience) => {
                Err(BucketError::Failed(format!("nothing more could be sent for {:?}", self.patience)))
            }
        }
    }
}

/// For requests whose time depends on the line.
fn untimed() -> aws_sdk_s3::config::Builder {
    let timeouts = TimeoutConfig::builder().disable_read_timeout().disable_operation_attempt_timeout().build();
    aws_sdk_s3::config::Builder::new().timeout_config(timeouts)
}

/// The next piece of a body.
pub(crate) async fn next(body: &mut ByteStream) -> Result<Option<Vec<u8>>, BucketError> {
    let failed = |error: &dyn std::error::Error| BucketError::Failed(format!("the answer broke off: {}", chain(error)));
    body.try_next().await.map(|piece| piece.map(|piece| piece.to_vec())).map_err(|error| failed(&error))
}

/// What a failure means, and how it is told in a line.
fn failure<E>(error: &SdkError<E>) -> BucketError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(answer) = error else { return BucketError::Failed(chain(error)) };
    let status = answer.raw().status().as_u16();
    let (code, message) = (answer.err().code(), answer.err().message());
    match (status, code) {
        (404, code) if code != Some("NoSuchBucket") => BucketError::Missing,
        (412, _) | (409, Some("ConditionalRequestConflict")) => BucketError::Changed,
        _ => {
            let words: Vec<_> = [code, message].into_iter().flatten().filter(|text| !text.is_empty()).collect();
            let words = if words.is_empty() { "no reason is given".into() } else { words.join(": ") };
            let told = format!("it answered with HTTP status {status}: {words}");
            match (status, code) {
                (501, _) | (_, Some("NotImplemented")) => BucketError::Unsupported(told),
                (400..=499, _) => BucketError::Refused(told),
                _ => BucketError::Failed(told),
            }
        }
    }
}

/// An error and what it came from, once each.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
