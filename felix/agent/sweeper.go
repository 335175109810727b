package agent

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/felix/dataplane/conntrack"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/judge"
)

// sweeper is the goroutine of cuts: it judges connections by the rules that are in the kernel.
type sweeper struct {
	*cuts
	model  *judge.Model
	due    judge.Impact // to be judged
	second judge.Impact // to be judged once more
	marks  bool         // marked connections are to be judged: policy may allow them again
	look   bool         // whether marked connections are left

	listening func() map[uint16]struct{} // the TCP ports that the host serves, read when first asked for; nil: not known
}

// turn does what is due; worked tells that something was judged that must be judged once more.
func (s *sweeper) turn(ctx context.Context) (worked bool, err error) {
	left := s.forget(ctx, false)
	worked, err = s.judgeAll(ctx)
	return worked, errors.Join(left, err)
}

// judgeAll judges the connections that what was committed since may concern.
func (s *sweeper) judgeAll(ctx context.Context) (worked bool, err error) {
	s.mu.Lock()
	committed, wanted, there := s.committed, s.wanted, s.there
	s.committed = nil
	s.mu.Unlock()
	due := s.second
	s.second = judge.Impact{}
	for _, d := range committed {
		impact := s.model.Update(d)
		s.due.Add(impact)
		s.marks = s.marks || wanted
	}
	first := !s.due.Empty()
	due.Add(s.due)
	if !due.Empty() {
		done, err := s.sweep(ctx, due, there)
		if err != nil || !done {
			s.due = due // again, as a whole
			return false, err
		}
		if first {
			s.second = s.due
		}
		s.due = judge.Impact{}
	}
	if s.marks || s.look {
		if err := s.lookAtMarks(ctx); err != nil {
			return false, err
		}
	}
	return first, nil
}

// sweep judges connections and marks what is forbidden. It is not done when the rule that drops what is marked is not there
// yet; then the rule is asked for.
func (s *sweeper) sweep(ctx context.Context, due judge.Impact, there bool) (done bool, err error) {
	if err := s.readHost(); err != nil {
		return false, err
	}
	var why judge.Verdict
	forbidden, err := s.with(ctx, due.All, due.Addresses, func(f *conntrack.Flow) bool {
		if f.Mark&desired.ConnMarkCut != 0 || f.Expected {
			return false // cut already; or let in by the announcement of another, which is judged
		}
		v := s.judge(f)
		if v.Outcome == judge.Forbidden {
			why = v
		}
		return v.Outcome == judge.Forbidden
	})
	if err != nil || len(forbidden) == 0 {
		return err == nil, err
	}
	if !there {
		s.want(true)
		return false, nil
	}
	if err := s.table.Mark(ctx, forbidden, desired.ConnMarkCut, desired.ConnMarkCut); err != nil {
		return false, err
	}
	s.mu.Lock()
	s.cut += uint64(len(forbidden))
	s.mu.Unlock()
	last := &forbidden[len(forbidden)-1]
	s.log.Info("connections that policy forbids now were cut", "connections", len(forbidden), "one", last.String(), "endpoint", why.Endpoint, "by", why.By)
	return true, nil
}

// lookAtMarks forgets marked connections that policy allows again, and gives up the rule when none is left.
func (s *sweeper) lookAtMarks(ctx context.Context) error {
	if !s.wants() {
		s.marks, s.look = false, false
		return nil
	}
	if err := s.readHost(); err != nil {
		return err
	}
	left := false
	allowed, err := s.table.Flows(ctx, conntrack.Select{Marked: desired.ConnMarkCut}, func(f *conntrack.Flow) bool {
		again := s.judge(f).Outcome == judge.Allowed
		left = left || !again
		return again
	})
	if err == nil {
		err = s.table.Delete(ctx, allowed)
	}
	if err != nil {
		return err
	}
	s.marks, s.look = false, false
	if !left && s.due.Empty() {
		s.want(false)
	}
	return nil
}

// want asks for the rule, or gives it up.
func (s *sweeper) want(rule bool) {
	s.mu.Lock()
	news := s.wanted != rule
	s.wanted = rule
	wake := s.wake
	s.mu.Unlock()
	if news {
		wake()
	}
}

func (s *sweeper) readHost() error {
	addrs, err := s.table.HostAddresses()
	if err != nil {
		return err
	}
	s.listening = sync.OnceValue(func() map[uint16]struct{} {
		ports, err := s.table.ListeningPorts()
		if err != nil {
			s.log.Warn("who opened connections that are older than the node's rules is not known: it is taken to be who spoke first since", "error", err)
			return nil
		}
		return ports
	})
	s.model.Host = make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		s.model.Host[a] = struct{}{}
	}
	return nil
}

// judge judges a connection by who opened it. Of one that the kernel picked up in the middle, which was there before the node's
// first rules, the packet seen first does not tell that, but of the host's own whether the host serves the port does.
func (s *sweeper) judge(f *conntrack.Flow) judge.Verdict {
	p, translated := packetOf(f)
	if f.PickedUp && !translated && s.turned(p) {
		p.Source, p.SourcePort, p.Destination, p.DestinationPort = p.Destination, p.DestinationPort, p.Source, p.SourcePort
	}
	return s.model.Judge(p, translated)
}

// turned tells whether a packet goes from server to client, one of which is the host.
func (s *sweeper) turned(p packet.Packet) bool {
	_, from := s.model.Host[p.Source]
	_, to := s.model.Host[p.Destination]
	if from == to {
		return false
	}
	ports := s.listening()
	if ports == nil {
		return false
	}
	port := p.DestinationPort
	if from {
		port = p.SourcePort
	}
	_, serves := ports[port]
	return serves == from
}

// packetOf is a connection's first packet as policy saw it: to where it was led, from where it really came; and whether it was
// sent elsewhere.
func packetOf(f *conntrack.Flow) (p packet.Packet, translated bool) {
	p = packet.Packet{
		Source: f.Original.Source, Destination: f.Reply.Source, Protocol: view.Protocol(f.Original.Protocol),
		SourcePort: f.Original.SourcePort, DestinationPort: f.Reply.SourcePort,
	}
	if p.Protocol == packet.ICMP || p.Protocol == packet.ICMPv6 {
		p.ICMP = &view.ICMP{Type: f.Original.ICMPType, Code: &f.Original.ICMPCode}
	}
	return p, p.Destination != f.Original.Destination || p.DestinationPort != f.Original.DestinationPort
}
