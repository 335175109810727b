// Package bfd is the Bidirectional Forwarding Detection of RFC 5880, as far as BGP needs it: asynchronous mode over one hop
// (RFC 5881) or several (RFC 5883), with negotiation of timers. It reads and writes packets and runs the state machine of a
// session; it is told the time, and says what to send and when it must be asked again.
//
// It refuses sockets, clocks and threads: those are package udp's. Left out are authentication, the echo function and
// demand mode; a peer that asks for demand mode goes on receiving packets, which does no harm.
package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// State is a state of a session (RFC 5880 section 4.1).
type State uint8

// The states, by their values on the wire.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

// String is the state's name.
func (s State) String() string {
	if s > Up {
		return "unknown"
	}
	return [...]string{"admin down", "down", "init", "up"}[s]
}

// Diagnostic is why a session last left the state Up (RFC 5880 section 4.1).
type Diagnostic uint8

// The diagnostics that sessions here give.
const (
	NoDiagnostic     Diagnostic = 0
	DetectionExpired Diagnostic = 1
	NeighborDown     Diagnostic = 3
	AdminDowned      Diagnostic = 7
)

// String is the diagnostic in the words of the RFC.
func (d Diagnostic) String() string {
	names := [...]string{
		"no diagnostic", "control detection time expired", "echo function failed", "neighbor signaled session down",
		"forwarding plane reset", "path down", "concatenated path down", "administratively down", "reverse concatenated path down",
	}
	if int(d) >= len(names) {
		return fmt.Sprintf("diagnostic %d", uint8(d))
	}
	return names[d]
}

// Packet is a control packet. Intervals are whole microseconds.
type Packet struct {
	Diagnostic Diagnostic
	State      State
	Poll       bool
	Final      bool
	Demand     bool
	Multiplier uint8
	Sender     uint32 // My Discriminator
	Receiver   uint32 // Your Discriminator; 0 if the sender does not know it
	MinTx      time.Duration
	MinRx      time.Duration // 0: send nothing periodically
}

// Size is the length of a packet without authentication.
const Size = 24

const (
	version = 1

	bitPoll      = 1 << 5
	bitFinal     = 1 << 4
	bitAuth      = 1 << 2
	bitDemand    = 1 << 1
	bitMultipart = 1 << 0
)

// Errors of Parse.
var (
	errShort    = errors.New("packet is shorter than it must be")
	errVersion  = errors.New("version is not 1")
	errLength   = errors.New("length field is wrong")
	errMult     = errors.New("multiplier is 0")
	errMulti    = errors.New("multipoint bit is set")
	errSender   = errors.New("discriminator of the sender is 0")
	errReceiver = errors.New("discriminator of the receiver is 0, but the session is not down")
	errAuth     = errors.New("packet is authenticated, which is not supported")
)

// Parse reads a packet and makes those checks of RFC 5880 section 6.8.6 that need no session.
func Parse(b []byte) (Packet, error) {
	if len(b) < Size {
		return Packet{}, errShort
	}
	length, flags := int(b[3]), b[1]
	p := Packet{
		Diagnostic: Diagnostic(b[0] & 0x1f), State: State(flags >> 6), Poll: flags&bitPoll != 0, Final: flags&bitFinal != 0,
		Demand: flags&bitDemand != 0, Multiplier: b[2],
		Sender: binary.BigEndian.Uint32(b[4:]), Receiver: binary.BigEndian.Uint32(b[8:]),
		MinTx: microseconds(b[12:]), MinRx: microseconds(b[16:]),
	}
	switch {
	case b[0]>>5 != version:
		return Packet{}, errVersion
	case length < Size || length > len(b):
		return Packet{}, errLength
	case flags&bitAuth != 0:
		return Packet{}, errAuth
	case p.Multiplier == 0:
		return Packet{}, errMult
	case flags&bitMultipart != 0:
		return Packet{}, errMulti
	case p.Sender == 0:
		return Packet{}, errSender
	case p.Receiver == 0 && p.State > Down:
		return Packet{}, errReceiver
	}
	return p, nil
}

func microseconds(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}

// Append writes the packet behind b. No echo is offered.
func (p Packet) Append(b []byte) []byte {
	flags := byte(p.State) << 6
	for _, bit := range []struct {
		set  bool
		mask byte
	}{{p.Poll, bitPoll}, {p.Final, bitFinal}, {p.Demand, bitDemand}} {
		if bit.set {
			flags |= bit.mask
		}
	}
	b = append(b, version<<5|byte(p.Diagnostic)&0x1f, flags, p.Multiplier, Size)
	for _, v := range []uint32{p.Sender, p.Receiver, toMicroseconds(p.MinTx), toMicroseconds(p.MinRx), 0} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func toMicroseconds(d time.Duration) uint32 {
	return uint32(min(max(d.Microseconds(), 0), math.MaxUint32))
}
