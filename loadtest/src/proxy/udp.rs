//! UDP through the proxy: each client address is a flow with a source port of its own. **Invariant:** a flow's packets
//! come from the target or go to it, nobody else's are passed on.

use super::faults::Direction;
use super::lane::Lane;
use super::table::{Reach, Table};
use super::{Rules, Shared};
use bytes::Bytes;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// The largest datagram (RFC 768).
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Packets taken from a socket before others have their turn.
const BATCH_MAX: usize = 64;
/// A source port that is the target's own would be a socket that talks to itself.
const SOURCE_TRIES: usize = 4;

type Flows = Mutex<Table<Arc<Flow>>>;

#[derive(Debug)]
struct Flow {
    client: SocketAddr,
    to_target: Mutex<Lane>,
    /// Something came from the client.
    wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the clients' packets until the proxy stops.
pub(super) async fn serve(shared: Arc<Shared>, socket: UdpSocket) {
    let table = Table::new(shared.limits.flows_max, shared.limits.idle);
    let door = Door { socket: Arc::new(socket), flows: Arc::new(Mutex::new(table)), shared };
    let stop = door.shared.stop.clone();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = door.listen() => {}
    }
}

struct Door {
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    flows: Arc<Flows>,
}

impl Door {
    async fn listen(&self) {
        let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        loop {
            // A listening UDP socket has no errors that last; what one packet caused is gone with it.
            let _ = self.socket.readable().await;
            for _ in 0..BATCH_MAX {
                buffer.clear();
                match self.socket.try_recv_buf_from(&mut buffer) {
                    Ok((_, client)) => self.take(client, &Bytes::copy_from_slice(&buffer)),
                    Err(_) => break,
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn take(&self, client: SocketAddr, packet: &Bytes) {
        let now = self.shared.now();
        let mut flows = lock(&self.flows);
        let flow = match flows.reach(client, now) {
            Reach::Known(flow) => Some(flow),
            Reach::Full => None,
            Reach::New => self.open(client, now, &mut flows),
        };
        let Some(flow) = flow else {
            self.shared.stats().udp.refused += 1;
            return;
        };
        let faults = self.shared.rules.borrow().udp(Direction::ToTarget);
        // Still under the flows' lock: the flow cannot expire before it has the packet. Locks are taken in this order only:
        // flows, lane, stats.
        lock(&flow.to_target).packet(now, packet, &faults, &mut self.shared.stats().udp.to_target);
        drop(flows);
        flow.wake.notify_one();
    }

    fn open(&self, client: SocketAddr, now: Duration, flows: &mut Table<Arc<Flow>>) -> Option<Arc<Flow>> {
        let rebinds = self.shared.rules.borrow().rebinds;
        let source = source(self.shared.target).ok()?;
        let number = self.shared.next_number();
        let flow = Arc::new(Flow {
            client,
            to_target: Mutex::new(self.shared.lane(number, Direction::ToTarget)),
            wake: Notify::new(),
        });
        flows.insert(client, Arc::clone(&flow), now);
        self.shared.stats().udp.open = flows.len() as u64;
        let task = Task {
            to_client: self.shared.lane(number, Direction::ToClient),
            shared: Arc::clone(&self.shared),
            flows: Arc::clone(&self.flows),
            flow: Arc::clone(&flow),
            door: Arc::clone(&self.socket),
            source,
            before: None,
            rebinds,
        };
        self.shared.tasks.spawn(task.run());
        Some(flow)
    }
}

/// A socket that hears the target alone.
fn source(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    for _ in 0..SOURCE_TRIES {
        let socket = std::net::UdpSocket::bind(any)?;
        socket.connect(target)?;
        if socket.local_addr()? != target {
            socket.set_nonblocking(true)?;
            return UdpSocket::from_std(socket);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Runs one flow.
struct Task {
    shared: Arc<Shared>,
    flows: Arc<Flows>,
    flow: Arc<Flow>,
    door: Arc<UdpSocket>,
    to_client: Lane,
    source: UdpSocket,
    /// The last port is kept until the next rebind, unread: so nobody else is given it while packets are on their way to it.
    before: Option<UdpSocket>,
    rebinds: u64,
}

impl Task {
    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.pass() => {}
        }
        let mut flows = lock(&self.flows);
        // After an expiry the client may have a new flow already; only this one is taken out.
        flows.remove_if(self.flow.client, |flow| Arc::ptr_eq(flow, &self.flow));
        self.shared.stats().udp.open = flows.len() as u64;
    }

    /// Every turn does all that can be done, then waits for any reason to do more.
    async fn pass(&mut self) {
        let mut rules = self.shared.rules.clone();
        let mut ends = self.shared.now() + self.shared.limits.idle;
        loop {
            let current = *rules.borrow_and_update();
            self.rebind(current.rebinds);
            let more = self.hear(&current);
            self.send(&current).await;
            let now = self.shared.now();
            if now >= ends {
                match lock(&self.flows).expire(self.flow.client, now) {
                    Some(later) => ends = later,
                    None => return,
                }
            }
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let due = lock(&self.flow.to_target).next_due().into_iter().chain(self.to_client.next_due());
            let next = due.fold(ends, Duration::min);
            tokio::select! {
                biased;
                changed = rules.changed() => if changed.is_err() { return },
                () = self.flow.wake.notified() => {}
                // An error is that of one packet (nobody listens there); `hear` takes it away.
                _ = self.source.readable() => {}
                () = tokio::time::sleep_until(self.shared.at(next)) => {}
            }
        }
    }

    fn rebind(&mut self, rebinds: u64) {
        if rebinds == self.rebinds {
            return;
        }
        self.rebinds = rebinds;
        // Without a free port the old one stays, as if nobody had asked.
        if let Ok(fresh) = source(self.shared.target) {
            self.before = Some(std::mem::replace(&mut self.source, fresh));
            self.shared.stats().rebound += 1;
        }
    }

    /// Takes what the target sent; says whether there may be more.
    fn hear(&mut self, rules: &Rules) -> bool {
        let mut buffer = Vec::new();
        let faults = rules.udp(Direction::ToClient);
        for heard in 0..BATCH_MAX {
            buffer.clear();
            buffer.reserve_exact(DATAGRAM_BYTES_MAX);
            match self.source.try_recv_buf(&mut buffer) {
                Ok(_) => {
                    let packet = Bytes::copy_from_slice(&buffer);
                    let now = self.shared.now();
                    let counters = &mut self.shared.stats().udp.to_client;
                    self.to_client.packet(now, &packet, &faults, counters);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if heard > 0 {
                        lock(&self.flows).touch(self.flow.client, self.shared.now());
                    }
                    return false;
                }
                // Nobody listens at the target: that is what one packet met, and no reason to end.
                Err(_) => {}
            }
        }
        lock(&self.flows).touch(self.flow.client, self.shared.now());
        true
    }

    /// Sends what is due, both ways.
    async fn send(&mut self, rules: &Rules) {
        let now = self.shared.now();
        for direction in [Direction::ToTarget, Direction::ToClient] {
            let hole = rules.udp(direction).black_hole;
            while let Some(packet) = self.pop(direction, now) {
                let sent = if hole { None } else { Some(self.send_one(&packet, direction).await) };
                let mut stats = self.shared.stats();
                let counters = stats.udp.way(direction);
                match sent {
                    None => counters.swallowed += 1,
                    Some(Ok(_)) => {
                        counters.packets += 1;
                        counters.bytes += packet.len() as u64;
                    }
                    Some(Err(_)) => counters.dropped += 1,
                }
            }
        }
    }

    fn pop(&mut self, direction: Direction, now: Duration) -> Option<Bytes> {
        match direction {
            Direction::ToTarget => {
                let mut lane = lock(&self.flow.to_target);
                lane.pop(now, &mut self.shared.stats().udp.to_target)
            }
            Direction::ToClient => self.to_client.pop(now, &mut self.shared.stats().udp.to_client),
        }
    }

    async fn send_one(&self, packet: &Bytes, direction: Direction) -> io::Result<usize> {
        match direction {
            Direction::ToTarget => {
                let sent = self.source.send(packet).await;
                if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                    // The error of an earlier packet, reported instead of sending this one.
                    return self.source.send(packet).await;
                }
                sent
            }
            Direction::ToClient => self.door.send_to(packet, self.flow.client).await,
        }
    }
}
