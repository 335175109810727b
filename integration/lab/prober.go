package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/integration/vm"
)

// probeTimeout is how long one probe may take unless its request says so.
const probeTimeout = 3 * time.Second

// patientProbe is the same where the processor is emulated: on a busy machine it may stand still for seconds.
const patientProbe = 3 * probeTimeout

// AnswerPatience is how long a probe whose answer is expected should wait for it: a busy machine may stand still for
// seconds. A probe that should not get through can do with less: one that stands still does not answer either.
const AnswerPatience = 30 * time.Second

// probesAtOnce bounds how many probes are under way.
const probesAtOnce = 32

// ProbeRequest asks for one probe. Port 0 of a TCP probe is answered by an echo server that the lab starts for it.
type ProbeRequest struct {
	From, To string
	Kind     ProbeKind
	Port     uint16
	IPv6     bool
	// Timeout is how long to wait for the answer, default 3 s: long enough for a lost SYN to be sent again. It is 9 s in the
	// second kernel, whose processor is emulated.
	Timeout time.Duration
}

// Probe sends one probe and tells how it went and which way it took.
func (l *Lab) Probe(ctx context.Context, r ProbeRequest) (ProbeResult, error) {
	rs, err := l.Probes(ctx, []ProbeRequest{r})
	if err != nil {
		return ProbeResult{}, err
	}
	return rs[0], nil
}

// Probes sends many probes at once, while it captures on the uplinks of all nodes. The results are in the order of the
// requests. A probe that does not get through is a result; an error means that probing itself failed.
func (l *Lab) Probes(ctx context.Context, rs []ProbeRequest) ([]ProbeResult, error) {
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	p := &prober{lab: l, status: st, echoes: map[string]*echo{}}
	defer p.close()
	flights := make([]*flight, len(rs))
	for i, r := range rs {
		if flights[i], err = p.prepare(ctx, r); err != nil {
			return nil, err
		}
	}
	if err := p.startCaptures(ctx); err != nil {
		return nil, err
	}
	usual := probeTimeout
	if vm.Inside() {
		usual = patientProbe
	}
	var g errgroup.Group
	g.SetLimit(probesAtOnce)
	for _, f := range flights {
		g.Go(func() error {
			f.latency, f.err = f.send(ctx, l, cmp.Or(f.request.Timeout, usual))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	frames, err := p.stopCaptures()
	if err != nil {
		return nil, err
	}
	results := make([]ProbeResult, len(flights))
	for i, f := range flights {
		results[i] = f.result(frames)
	}
	return results, nil
}

// prober holds what a batch of probes shares.
type prober struct {
	lab    *Lab
	status Status
	echoes map[string]*echo // by place and family

	stop     context.CancelFunc
	reading  errgroup.Group
	captures []*Capture
	mu       sync.Mutex
	frames   []nodeFrame
}

// nodeFrame is a frame seen on a node's uplink.
type nodeFrame struct {
	node string
	Packet
}

// flight is one probe.
type flight struct {
	request    ProbeRequest
	to         netip.AddrPort
	echoed     bool   // the lab's own server answers
	word       []byte // its payload
	localPort  uint16
	sourceNode string
	targetNode string

	latency time.Duration
	err     error
}

func (p *prober) prepare(ctx context.Context, r ProbeRequest) (*flight, error) {
	if r.Kind == "" {
		r.Kind = ProbeTCP
	}
	fromNode, _, err := p.locate(r.From, r.IPv6)
	if err != nil {
		return nil, err
	}
	toNode, addr, err := p.locate(r.To, r.IPv6)
	if err != nil {
		return nil, err
	}
	if !addr.IsValid() {
		return nil, problem(r.To+" has no address of that family", "see: lab status")
	}
	f := &flight{request: r, to: netip.AddrPortFrom(addr, r.Port), word: newWord(), sourceNode: fromNode, targetNode: toNode}
	if r.Kind == ProbeTCP && r.Port == 0 {
		key := r.To + "/" + addr.String()
		if p.echoes[key] == nil {
			e, err := p.lab.startEcho(ctx, r.To, addr)
			if err != nil {
				return nil, fmt.Errorf("serve on %s: %w", r.To, err)
			}
			p.echoes[key] = e
		}
		f.to, f.echoed = p.echoes[key].addr, true
	}
	return f, nil
}

// locate finds on which node something is, and its address.
func (p *prober) locate(where string, v6 bool) (node string, addr netip.Addr, err error) {
	pick := func(as []netip.Addr) netip.Addr {
		for _, a := range as {
			if a.Is6() == v6 {
				return a
			}
		}
		return netip.Addr{}
	}
	for _, n := range p.status.Nodes {
		if n.Name == where {
			return n.Name, pick(n.Addresses), nil
		}
	}
	for _, pod := range p.status.Pods {
		if pod.ID == where {
			return pod.Node, pick(pod.Addresses), nil
		}
	}
	return "", netip.Addr{}, problem(fmt.Sprintf("there is no node or pod %q in lab %s", where, p.status.Name), "see: lab status --name "+p.status.Name)
}

func (p *prober) startCaptures(ctx context.Context) error {
	ctx, p.stop = context.WithCancel(ctx)
	for _, n := range p.status.Nodes {
		c, err := p.lab.Capture(ctx, n.Name, n.Interface)
		if err != nil {
			return err
		}
		p.captures = append(p.captures, c)
		p.reading.Go(func() error {
			for {
				pkt, err := c.Next(ctx)
				if err != nil {
					if ctx.Err() != nil {
						return nil
					}
					return fmt.Errorf("capture on %s: %w", n.Name, err)
				}
				p.keep(n.Name, pkt)
			}
		})
	}
	return nil
}

// stopCaptures returns all frames. What a finished probe sent and got was queued before it could finish, so nothing is
// missing.
func (p *prober) stopCaptures() ([]nodeFrame, error) {
	p.stop()
	err := p.reading.Wait()
	for i, c := range p.captures {
		rest, drainErr := c.Drain()
		err = errors.Join(err, drainErr)
		for _, pkt := range rest {
			p.keep(p.status.Nodes[i].Name, pkt)
		}
	}
	return p.frames, err
}

func (p *prober) keep(node string, pkt Packet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frames = append(p.frames, nodeFrame{node, pkt})
}

func (p *prober) close() {
	if p.stop != nil {
		p.stop()
	}
	_ = p.reading.Wait()
	for _, c := range p.captures {
		_ = c.Close()
	}
	for _, e := range p.echoes {
		e.close()
	}
}

// send sends the probe and returns its latency. Its time begins when it has its socket: a probe that waited for the lab
// must still be sent, since those that should be lost are counted where they are.
func (f *flight) send(ctx context.Context, l *Lab, timeout time.Duration) (time.Duration, error) {
	if f.request.Kind == ProbeICMP {
		return l.ping(ctx, f.request.From, f.to.Addr(), f.word, timeout)
	}
	s, err := l.socket(ctx, f.request.From, familyOf(f.to.Addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	if f.localPort, err = bindAnyPort(s, f.to.Addr()); err != nil {
		s.Close()
		return 0, err
	}
	began := time.Now()
	deadline := began.Add(timeout)
	c, err := connectSocket(s, f.to, deadline)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	took := time.Since(began)
	if !f.echoed {
		return took, nil
	}
	_ = c.SetDeadline(deadline)
	if _, err := c.Write(f.word); err != nil {
		return 0, err
	}
	got := make([]byte, len(f.word))
	if _, err := io.ReadFull(c, got); err != nil {
		return 0, fmt.Errorf("no echo: %w", err)
	}
	if !bytes.Equal(got, f.word) {
		return 0, errors.New("the echo differs from what was sent")
	}
	return took, nil
}

// result judges the probe by what was captured.
func (f *flight) result(frames []nodeFrame) ProbeResult {
	r := ProbeResult{From: f.request.From, To: f.request.To, Kind: f.request.Kind, OK: f.err == nil, Latency: f.latency}
	r.Target = f.to.String()
	if f.request.Kind == ProbeICMP {
		r.Target = f.to.Addr().String()
	}
	left, arrived := false, false
	paths := map[Path]bool{}
	owned := f.owns(frames)
	for _, fr := range frames {
		if !owned(fr.Packet) {
			continue
		}
		r.Seen = append(r.Seen, Sighting{Node: fr.node, Packet: fr.Packet})
		left = left || fr.Outgoing && fr.node == f.sourceNode
		if fr.Outgoing {
			continue // counted where it arrives
		}
		arrived = arrived || fr.node == f.targetNode
		r.Packets++
		paths[pathOf(fr.Encap)] = true
		if r.Sample == "" {
			r.Sample = fr.String()
		}
	}
	switch {
	case f.err != nil:
		r.Path = PathNone
		r.Error = strings.ReplaceAll(f.err.Error(), "\n", ": ") + f.whereabouts(left, arrived)
	case len(paths) == 0:
		r.Path = PathLocal
	case len(paths) > 1:
		r.Path = PathMixed
	default:
		for p := range paths {
			r.Path = p
		}
	}
	return r
}

// whereabouts says how far a lost probe came.
func (f *flight) whereabouts(left, arrived bool) string {
	switch {
	case f.sourceNode == f.targetNode:
		return ""
	case arrived:
		return fmt.Sprintf(" (its packets reached %s)", f.targetNode)
	case left:
		return fmt.Sprintf(" (its packets left %s and did not reach %s)", f.sourceNode, f.targetNode)
	}
	return fmt.Sprintf(" (its packets did not leave %s)", f.sourceNode)
}

// owns returns the test whether a captured packet is the probe's, in either direction. Packets with its word are. The rest
// of a TCP connection is known by the addresses and ports that these have, translated or not. A connection that carried
// no word is known by its ports alone, for what they are worth: other places may use the same.
func (f *flight) owns(frames []nodeFrame) func(Packet) bool {
	type ends struct{ src, dst netip.AddrPort }
	of := func(p Packet) ends {
		return ends{netip.AddrPortFrom(p.Inner.Src, p.Inner.SrcPort), netip.AddrPortFrom(p.Inner.Dst, p.Inner.DstPort)}
	}
	connections := map[ends]bool{}
	for _, fr := range frames {
		if bytes.Contains(fr.Inner.Payload, f.word) {
			e := of(fr.Packet)
			connections[e], connections[ends{e.dst, e.src}] = true, true
		}
	}
	return func(p Packet) bool {
		switch {
		case f.request.Kind != ProbeTCP:
			return bytes.Contains(p.Inner.Payload, f.word)
		case p.Inner.Proto != "tcp":
			return false
		case f.echoed && f.err == nil:
			return connections[of(p)]
		}
		e := of(p)
		return e.dst == f.to && e.src.Port() == f.localPort || e.src == f.to && e.dst.Port() == f.localPort
	}
}

func pathOf(e Encapsulation) Path {
	switch e {
	case EncapVXLAN:
		return PathVXLAN
	case EncapIPIP:
		return PathIPIP
	}
	return PathDirect
}

// newWord returns 32 random hexadecimal digits, to find a probe's packets by.
func newWord() []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return []byte(hex.EncodeToString(b))
}
