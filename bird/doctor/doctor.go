// Package doctor finds out why sessions do not come up where the speaker is not told: a peer that wants another password, or
// packets with another TTL, just does not answer. It reads what the kernel has dropped, and asks the peer's host whether it is
// there at all. What it says is a suspicion, and named so.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/muslin-net/muslin/bird/speaker"
)

// Bird is the speaker whose sessions are looked at.
type Bird interface {
	Ailing() []speaker.PeerState
	Diagnose(peer netip.Addr, what string)
}

const (
	round      = 5 * time.Second  // between two looks at all sessions
	grace      = 6 * time.Second  // how long a session may take without being suspected of anything
	again      = 30 * time.Second // between two questions to the same host
	answer     = time.Second      // how long a host has to answer
	atOnce     = 8                // how many hosts are asked at the same time
	freshDrops = time.Minute      // how long what the kernel has dropped counts
)

// unlikely is a port on which no host serves: one that is there refuses, which is the answer that is wanted.
const unlikely = 1

// Doctor is one.
type Doctor struct {
	bird   Bird
	log    *slog.Logger
	read   func() (Drops, error)
	asks   func(ctx context.Context, from, to netip.Addr) bool
	now    func() time.Time
	grace  time.Duration
	before Drops
	seen   map[string]time.Time // when drops of a kind last happened
	asked  map[netip.Addr]reply
}

type reply struct {
	at    time.Time
	alive bool
}

// New returns a doctor for a speaker.
func New(log *slog.Logger, bird Bird) *Doctor {
	return &Doctor{bird: bird, log: log, read: ReadDrops, asks: alive, now: time.Now, grace: grace, seen: map[string]time.Time{}, asked: map[netip.Addr]reply{}}
}

// Run looks every few seconds until ctx ends.
func (d *Doctor) Run(ctx context.Context) error {
	var err error
	if d.before, err = d.read(); err != nil {
		d.log.Info("what the kernel drops is not known; mismatched passwords and TTLs look like silence", "error", err)
	}
	tick := time.NewTicker(round)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.look(ctx)
		}
	}
}

// look looks at all sessions that are not up.
func (d *Doctor) look(ctx context.Context) {
	if drops, err := d.read(); err == nil {
		d.grown(drops)
	}
	var silent []speaker.PeerState
	for _, p := range d.bird.Ailing() {
		if d.now().Sub(p.Since) < d.grace && p.State != speaker.Idle {
			continue
		}
		if isSilent(&p) {
			silent = append(silent, p)
			continue
		}
		d.bird.Diagnose(p.Peer.Address, d.judge(&p, false))
	}
	d.ask(ctx, silent)
	for _, p := range silent {
		d.bird.Diagnose(p.Peer.Address, d.judge(&p, d.asked[p.Peer.Address].alive))
	}
}

// isSilent tells whether we dial, and nobody answers.
func isSilent(p *speaker.PeerState) bool {
	return !p.Passive && p.State == speaker.Active && p.LastError == "Socket: "+capital(syscall.ETIMEDOUT.Error())
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// grown notes which drops there were since the last look.
func (d *Doctor) grown(now Drops) {
	for kind, n := range now {
		if n > d.before[kind] {
			d.seen[kind] = d.now()
		}
	}
	d.before = now
}

func (d *Doctor) dropped(kind string) bool {
	at, ok := d.seen[kind]
	return ok && d.now().Sub(at) < freshDrops
}

// judge says what seems to be the matter; empty if nothing does.
func (d *Doctor) judge(p *speaker.PeerState, alive bool) string {
	silent := isSilent(p)
	if !silent && p.State != speaker.OpenSent && p.State != speaker.OpenConfirm && (p.State != speaker.Active || !p.Passive) {
		return ""
	}
	password := p.Password != ""
	switch {
	case p.TTLSecurity > 0 && d.dropped(LowTTL):
		return fmt.Sprintf("TTL security: packets came in with a TTL below %d; the peer is more than %d hops away, or does not use TTL security for this session",
			256-int(p.TTLSecurity), p.TTLSecurity)
	case password && d.dropped(WrongSignature):
		return "password mismatch suspected: packets came in that were signed with another password"
	case password && d.dropped(NoSignature):
		return "password mismatch suspected: packets came in that were not signed; the peer may have no password for this session"
	case !password && d.dropped(UnexpectedSignature):
		return "password mismatch suspected: packets came in that were signed, and no password is configured here"
	case !silent:
		return ""
	case !alive:
		return "nothing at all answers from the peer's host"
	case password:
		return "password mismatch suspected: no answer to SYN while the peer's host is there; or TTL security of the peer, or a firewall"
	default:
		return "no answer to SYN while the peer's host is there: the peer wants a password or TTL security, or a firewall drops the port"
	}
}

// ask finds out which hosts are there, a few at a time.
func (d *Doctor) ask(ctx context.Context, silent []speaker.PeerState) {
	var (
		mu    sync.Mutex
		all   sync.WaitGroup
		slots = make(chan struct{}, atOnce)
		fresh = map[netip.Addr]reply{}
	)
	for _, p := range silent {
		a := p.Peer.Address
		if r, ok := d.asked[a]; ok && d.now().Sub(r.at) < again {
			mu.Lock()
			fresh[a] = r
			mu.Unlock()
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			r := reply{at: d.now(), alive: d.asks(ctx, p.SourceAddress, a)}
			mu.Lock()
			defer mu.Unlock()
			fresh[a] = r
		})
	}
	all.Wait()
	d.asked = fresh
}

// alive tells whether a host answers.
func alive(ctx context.Context, from, to netip.Addr) bool {
	dialer := net.Dialer{Timeout: answer}
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(to, unlikely).String())
	if err == nil {
		_ = conn.Close()
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Kinds of packets that the kernel drops, as it names them.
const (
	NoSignature         = "TCPMD5NotFound"   // not signed, though there is a password
	UnexpectedSignature = "TCPMD5Unexpected" // signed, though there is no password
	WrongSignature      = "TCPMD5Failure"
	LowTTL              = "TCPMinTTLDrop"
)

// Drops is how many packets the kernel has dropped, by kind.
type Drops map[string]uint64

// ReadDrops reads the kernel's counters of this network namespace.
func ReadDrops() (Drops, error) {
	text, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return nil, err
	}
	return parseDrops(string(text))
}

// parseDrops reads lines of names, each followed by one of values.
func parseDrops(text string) (Drops, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	out := Drops{}
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) == 0 || len(names) != len(values) || names[0] != values[0] {
			return nil, fmt.Errorf("netstat: line %d does not fit the one before", i+2)
		}
		for j, name := range names {
			switch name {
			case NoSignature, UnexpectedSignature, WrongSignature, LowTTL:
				var n uint64
				if _, err := fmt.Sscan(values[j], &n); err != nil {
					return nil, fmt.Errorf("netstat: %s: %w", name, err)
				}
				out[name] = n
			}
		}
	}
	return out, nil
}
