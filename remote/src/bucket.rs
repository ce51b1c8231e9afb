//! The bucket, through Amazon's client: the few operations that are needed, and what their failures mean.

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
    /// There is one already.
    #[error("there is such an object already")]
    Exists,
    /// The service cannot be reached, is too slow, has failed, or refuses.
    #[error("{0}")]
    Failed(String),
}

/// A bucket. Its client is made when it is first used: finding credentials can take time.
#[derive(Debug)]
pub(crate) struct Bucket {
    name: String,
    region: Option<String>,
    endpoint_url: Option<String>,
    force_path_style: bool,
    connect: Duration,
    attempt: Duration,
    client: OnceCell<Client>,
}

impl Bucket {
    /// A bucket, one attempt at a request of which takes no longer than `attempt`. To be used in one runtime only.
    pub(crate) fn new(config: &S3Config, attempt: Duration) -> Bucket {
        Bucket {
            name: config.bucket.clone(),
            region: config.region.clone(),
            endpoint_url: config.endpoint_url.clone(),
            force_path_style: config.force_path_style,
            connect: config.timing.connect,
            attempt,
            client: OnceCell::new(),
        }
    }

    async fn client(&self) -> &Client {
        self.client.get_or_init(|| self.connect()).await
    }

    async fn connect(&self) -> Client {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(self.connect)
            .read_timeout(self.attempt)
            .operation_attempt_timeout(self.attempt)
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
            // It waits for 20 s; whoever fetches does not.
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
    pub(crate) async fn get(&self, key: &str, limit_bytes: usize) -> Result<Vec<u8>, BucketError> {
        let (length, mut body) = self.open(key, None).await?;
        let too_long = || BucketError::Failed(format!("{key} has more than {limit_bytes} bytes"));
        if length > limit_bytes as u64 {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        while let Some(piece) = next(&mut body).await? {
            if bytes.len() + piece.len() > limit_bytes {
                return Err(too_long());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// An object's bytes from `first` to `last`, or all; and how many the service says there are.
    pub(crate) async fn open(&self, key: &str, range: Option<(u64, u64)>) -> Result<(u64, ByteStream), BucketError> {
        let range = range.map(|(first, last)| format!("bytes={first}-{last}"));
        let request = self.client().await.get_object().bucket(&self.name).key(key).set_range(range);
        let object = request.send().await.map_err(|error| failure(&error))?;
        let length = object.content_length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        Ok((length, object.body))
    }

    /// Whether there is such an object.
    pub(crate) async fn has(&self, key: &str) -> Result<bool, BucketError> {
        match self.client().await.head_object().bucket(&self.name).key(key).send().await {
            Ok(_) => Ok(true),
            Err(error) => match failure(&error) {
                BucketError::Missing => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Writes an object.
    pub(crate) async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        let request = self.client().await.put_object().bucket(&self.name).key(key).body(bytes.into());
        request.send().await.map(drop).map_err(|error| failure(&error))
    }

    /// Writes an object, unless there is one of its name.
    pub(crate) async fn put_first(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        let request = self.client().await.put_object().bucket(&self.name).key(key).body(bytes.into());
        request.if_none_match("*").send().await.map(drop).map_err(|error| failure(&error))
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
        let sent = request.part_number(number).body(bytes.into()).send().await.map_err(|error| failure(&error))?;
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

    /// Removes objects.
    pub(crate) async fn remove(&self, keys: &[String]) -> Result<(), BucketError> {
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
        (412, _) => BucketError::Exists,
        _ => {
            let words: Vec<_> = [code, message].into_iter().flatten().filter(|text| !text.is_empty()).collect();
            let words = if words.is_empty() { "no reason is given".into() } else { words.join(": ") };
            BucketError::Failed(format!("it answered with HTTP status {status}: {words}"))
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
