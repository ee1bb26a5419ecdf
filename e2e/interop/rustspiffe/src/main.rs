//! A pod's process that has its SVID by the crate spiffe, at SPIFFE_ENDPOINT_SOCKET. It says "jwt
//! ID TOKEN", or what asking for a JWT-SVID ends with, and "svid ID SERIAL ROOTS" for each update, until
//! its standard input ends.

use futures::StreamExt;
use spiffe::{SpiffeId, WorkloadApiClient};
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = WorkloadApiClient::connect_env().await?;
    match client.fetch_jwt_svid(["anybody"], None::<&SpiffeId>).await {
        Ok(svid) => println!("jwt {} {}", svid.spiffe_id(), svid.token()),
        Err(e) => println!("jwt {e:?}"),
    }
    let mut contexts = client.stream_x509_contexts().await?;
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            context = contexts.next() => {
                let context = context.ok_or("the stream has ended")??;
                let svid = context.default_svid().ok_or("no SVID")?;
                let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain()).ok_or("no bundle")?;
                let (_, leaf) = x509_parser::parse_x509_certificate(svid.cert_chain()[0].as_bytes())?;
                println!("svid {} {:x} {}", svid.spiffe_id(), leaf.serial, bundle.authorities().len());
            }
            read = input.read(&mut ignored) => if read? == 0 { return Ok(()) },
        }
    }
}
