package nft

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Expr is the expressions of a rule, encoded. Methods append one and return the longer list; a method must not be called
// twice on one value.
type Expr []byte

// Reg is the register that all matches use; an address of 16 bytes fits. Reg32 is the first of the 4-byte registers, which
// concatenated keys fill one after the other (it begins where Reg begins).
const (
	Reg   = unix.NFT_REG_1
	Reg32 = unix.NFT_REG32_00
)

func (e Expr) add(name string, fill func([]byte) []byte) Expr {
	return nlsock.Nest(e, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
		b = nlsock.AttrString(b, unix.NFTA_EXPR_NAME, name)
		if fill == nil {
			return b
		}
		return nlsock.Nest(b, unix.NFTA_EXPR_DATA, fill)
	})
}

// Meta loads meta information (unix.NFT_META_…) into a register.
func (e Expr) Meta(key, reg uint32) Expr {
	return e.add("meta", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_META_KEY, key)
		return nlsock.AttrBE32(b, unix.NFTA_META_DREG, reg)
	})
}

// SetMeta writes Reg to meta information.
func (e Expr) SetMeta(key uint32) Expr {
	return e.add("meta", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_META_KEY, key)
		return nlsock.AttrBE32(b, unix.NFTA_META_SREG, Reg)
	})
}

// Payload loads bytes of the packet, from the network (unix.NFT_PAYLOAD_NETWORK_HEADER) or transport header, into a
// register.
func (e Expr) Payload(base, offset, length, reg uint32) Expr {
	return e.add("payload", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_PAYLOAD_DREG, reg)
		b = nlsock.AttrBE32(b, unix.NFTA_PAYLOAD_BASE, base)
		b = nlsock.AttrBE32(b, unix.NFTA_PAYLOAD_OFFSET, offset)
		return nlsock.AttrBE32(b, unix.NFTA_PAYLOAD_LEN, length)
	})
}

// Ct loads connection tracking information (unix.NFT_CT_…) into Reg.
func (e Expr) Ct(key uint32) Expr {
	return e.add("ct", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_CT_KEY, key)
		return nlsock.AttrBE32(b, unix.NFTA_CT_DREG, Reg)
	})
}

// Fib looks an address up in the routing tables and loads the result (unix.NFT_FIB_RESULT_…) into Reg. flags are
// unix.NFTA_FIB_F_….
func (e Expr) Fib(result, flags uint32) Expr {
	return e.add("fib", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_FIB_DREG, Reg)
		b = nlsock.AttrBE32(b, unix.NFTA_FIB_RESULT, result)
		return nlsock.AttrBE32(b, unix.NFTA_FIB_FLAGS, flags)
	})
}

// Mask ands Reg with mask and then xors it.
func (e Expr) Mask(mask, xor []byte) Expr {
	return e.add("bitwise", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_BITWISE_SREG, Reg)
		b = nlsock.AttrBE32(b, unix.NFTA_BITWISE_DREG, Reg)
		b = nlsock.AttrBE32(b, unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		b = appendData(b, unix.NFTA_BITWISE_MASK, string(mask))
		return appendData(b, unix.NFTA_BITWISE_XOR, string(xor))
	})
}

// Equal goes on only if Reg begins with value, or with not only if it does not.
func (e Expr) Equal(value []byte, not bool) Expr {
	return e.add("cmp", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_CMP_SREG, Reg)
		b = nlsock.AttrBE32(b, unix.NFTA_CMP_OP, op(not, unix.NFT_CMP_EQ, unix.NFT_CMP_NEQ))
		return appendData(b, unix.NFTA_CMP_DATA, string(value))
	})
}

// Range goes on only if Reg is between from and to, both included, or with not only if it is not.
func (e Expr) Range(from, to []byte, not bool) Expr {
	return e.add("range", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_RANGE_SREG, Reg)
		b = nlsock.AttrBE32(b, unix.NFTA_RANGE_OP, op(not, unix.NFT_RANGE_EQ, unix.NFT_RANGE_NEQ))
		b = appendData(b, unix.NFTA_RANGE_FROM_DATA, string(from))
		return appendData(b, unix.NFTA_RANGE_TO_DATA, string(to))
	})
}

func op(not bool, plain, negated uint32) uint32 {
	if not {
		return negated
	}
	return plain
}

// Lookup goes on only if the key that begins in Reg is in the set, or with not only if it is not.
func (e Expr) Lookup(set string, not bool) Expr {
	return e.add("lookup", func(b []byte) []byte {
		b = nlsock.AttrString(b, unix.NFTA_LOOKUP_SET, set)
		b = nlsock.AttrBE32(b, unix.NFTA_LOOKUP_SREG, Reg)
		if not {
			b = nlsock.AttrBE32(b, unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
		}
		return b
	})
}

// VerdictMap does what the map says for the key in Reg; it goes on if it says nothing.
func (e Expr) VerdictMap(name string) Expr {
	return e.add("lookup", func(b []byte) []byte {
		b = nlsock.AttrString(b, unix.NFTA_LOOKUP_SET, name)
		b = nlsock.AttrBE32(b, unix.NFTA_LOOKUP_SREG, Reg)
		return nlsock.AttrBE32(b, unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
	})
}

// Load puts a constant into a register.
func (e Expr) Load(value []byte, reg uint32) Expr {
	return e.add("immediate", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_IMMEDIATE_DREG, reg)
		return appendData(b, unix.NFTA_IMMEDIATE_DATA, string(value))
	})
}

// Verdict ends the rule with a verdict.
func (e Expr) Verdict(v Verdict) Expr {
	return e.add("immediate", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		return nlsock.Nest(b, unix.NFTA_IMMEDIATE_DATA, v.append)
	})
}

// Counter counts packets and bytes.
func (e Expr) Counter() Expr {
	return e.add("counter", func(b []byte) []byte {
		b = nlsock.Attr(b, unix.NFTA_COUNTER_BYTES, make([]byte, 8))
		return nlsock.Attr(b, unix.NFTA_COUNTER_PACKETS, make([]byte, 8))
	})
}

// NoTrack keeps the packet out of connection tracking.
func (e Expr) NoTrack() Expr { return e.add("notrack", nil) }

// Log writes a line to the kernel log at level info.
func (e Expr) Log(prefix string) Expr {
	const levelInfo = 6
	return e.add("log", func(b []byte) []byte {
		b = nlsock.AttrString(b, unix.NFTA_LOG_PREFIX, prefix)
		return nlsock.AttrBE32(b, unix.NFTA_LOG_LEVEL, levelInfo)
	})
}

// Limit goes on only as often as packets of the rule may: rate in each unit of whole seconds, after burst at once.
func (e Expr) Limit(rate uint64, unit time.Duration, burst uint32) Expr {
	return e.add("limit", func(b []byte) []byte {
		b = nlsock.Attr(b, unix.NFTA_LIMIT_RATE, binary.BigEndian.AppendUint64(nil, rate))
		b = nlsock.Attr(b, unix.NFTA_LIMIT_UNIT, binary.BigEndian.AppendUint64(nil, uint64(unit/time.Second)))
		b = nlsock.AttrBE32(b, unix.NFTA_LIMIT_BURST, burst)
		return nlsock.AttrBE32(b, unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
	})
}

// Reject answers with an ICMP error: administratively prohibited.
func (e Expr) Reject() Expr {
	return e.add("reject", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMPX_UNREACH)
		return nlsock.Attr(b, unix.NFTA_REJECT_ICMP_CODE, []byte{unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
	})
}

// PortRange is an inclusive range of ports; the zero value is none.
type PortRange struct{ First, Last uint16 }

// Bits of NFTA_MASQ_FLAGS and NFTA_NAT_FLAGS (linux/netfilter/nf_nat.h).
const (
	natPortsGiven  = 1 << 1
	natRandomFully = 1 << 4
)

// Masquerade gives the packet the address of the interface it leaves by.
func (e Expr) Masquerade(ports PortRange, random bool) Expr {
	e, flags := e.natPorts(ports, random)
	return e.add("masq", func(b []byte) []byte {
		if flags != 0 {
			b = nlsock.AttrBE32(b, unix.NFTA_MASQ_FLAGS, flags)
		}
		if flags&natPortsGiven != 0 {
			b = nlsock.AttrBE32(b, unix.NFTA_MASQ_REG_PROTO_MIN, Reg32+8)
			b = nlsock.AttrBE32(b, unix.NFTA_MASQ_REG_PROTO_MAX, Reg32+9)
		}
		return b
	})
}

// SourceNAT gives the packet an address.
func (e Expr) SourceNAT(f Family, address []byte, ports PortRange, random bool) Expr {
	e, flags := e.natPorts(ports, random)
	return e.Load(address, Reg).add("nat", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_NAT_TYPE, unix.NFT_NAT_SNAT)
		b = nlsock.AttrBE32(b, unix.NFTA_NAT_FAMILY, uint32(f))
		b = nlsock.AttrBE32(b, unix.NFTA_NAT_REG_ADDR_MIN, Reg)
		if flags&natPortsGiven != 0 {
			b = nlsock.AttrBE32(b, unix.NFTA_NAT_REG_PROTO_MIN, Reg32+8)
			b = nlsock.AttrBE32(b, unix.NFTA_NAT_REG_PROTO_MAX, Reg32+9)
		}
		if flags != 0 {
			b = nlsock.AttrBE32(b, unix.NFTA_NAT_FLAGS, flags)
		}
		return b
	})
}

// DestinationNAT sends the packet to another address.
func (e Expr) DestinationNAT(f Family, address []byte) Expr {
	return e.Load(address, Reg).add("nat", func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		b = nlsock.AttrBE32(b, unix.NFTA_NAT_FAMILY, uint32(f))
		return nlsock.AttrBE32(b, unix.NFTA_NAT_REG_ADDR_MIN, Reg)
	})
}

func (e Expr) natPorts(ports PortRange, random bool) (Expr, uint32) {
	var flags uint32
	if random {
		flags |= natRandomFully
	}
	if ports == (PortRange{}) {
		return e, flags
	}
	e = e.Load(binary.BigEndian.AppendUint16(nil, ports.First), Reg32+8)
	e = e.Load(binary.BigEndian.AppendUint16(nil, ports.Last), Reg32+9)
	return e, flags | natPortsGiven
}

// Verdict is what happens to a packet.
type Verdict struct {
	Code  VerdictCode
	Chain string // for Jump and Goto
}

// VerdictCode is a verdict without its chain.
type VerdictCode int32

const acceptCode = 1 // NF_ACCEPT

// The verdicts.
const (
	Drop   VerdictCode = 0 // NF_DROP
	Accept VerdictCode = acceptCode
	Return VerdictCode = unix.NFT_RETURN
	Jump   VerdictCode = unix.NFT_JUMP
	Goto   VerdictCode = unix.NFT_GOTO
)

// String is the verdict as nft(8) prints it.
func (v Verdict) String() string {
	switch v.Code {
	case Drop:
		return "drop"
	case Accept:
		return "accept"
	case Return:
		return "return"
	case Jump:
		return "jump " + v.Chain
	case Goto:
		return "goto " + v.Chain
	}
	return "unknown verdict"
}

func (v Verdict) append(b []byte) []byte {
	return nlsock.Nest(b, unix.NFTA_DATA_VERDICT, func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_VERDICT_CODE, uint32(v.Code))
		if v.Chain != "" {
			b = nlsock.AttrString(b, unix.NFTA_VERDICT_CHAIN, v.Chain)
		}
		return b
	})
}
