//! A TCP gate before a real part: serves, pauses (keeps connections, forwards nothing) or closes them all.

use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    Paused,
    Closed,
}

/// Ends with its test.
pub struct Gate {
    address: SocketAddr,
    scheme: String,
    state: Arc<watch::Sender<State>>,
    _task: AbortOnDropHandle<()>,
}

impl Gate {
    /// A gate before the server of this URL.
    pub async fn open(url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap();
        let target = rest.split(['/', ',']).next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(State::Serving));
        let watched = Arc::clone(&state);
        #[allow(clippy::disallowed_methods, reason = "ends when the gate is dropped")]
        let task = tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let (target, state) = (target.clone(), watched.subscribe());
                tokio::spawn(pass(socket, target, state));
            }
        });
        Self { address, scheme: scheme.to_owned(), state, _task: AbortOnDropHandle::new(task) }
    }

    /// The gate's own URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Forwards again; what was paused goes on.
    pub fn serve(&self) {
        self.state.send_replace(State::Serving);
    }

    /// Forwards nothing and says nothing.
    pub fn pause(&self) {
        self.state.send_replace(State::Paused);
    }

    /// Ends all connections, and every new one at once.
    pub fn close(&self) {
        self.state.send_replace(State::Closed);
    }
}

async fn pass(mut client: TcpStream, target: String, mut state: watch::Receiver<State>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Closed => return,
            State::Paused => {
                if state.changed().await.is_err() {
                    return;
                }
            }
            State::Serving => {
                tokio::select! {
                    biased;
                    changed = state.changed() => if changed.is_err() { return },
                    _ = copy_bidirectional(&mut client, &mut server) => return,
                }
            }
        }
    }
}
