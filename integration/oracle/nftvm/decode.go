package nftvm

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// attrs are netlink attributes (linux/netlink.h): 2 bytes of length with the header, 2 of type, padded to 4.
type attrs map[uint16][]byte

// stateUntracked is NF_CT_STATE_UNTRACKED_BIT.
const stateUntracked = 1 << 6

// typeMask leaves out the flags of a type: nested, and of network byte order.
const typeMask = 0x3fff

func parse(b []byte, each func(kind uint16, value []byte) error) error {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return fmt.Errorf("attribute of %d bytes in %d", n, len(b))
		}
		if err := each(binary.NativeEndian.Uint16(b[2:])&typeMask, b[4:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

func attributes(b []byte) attrs {
	out := attrs{}
	_ = parse(b, func(kind uint16, value []byte) error {
		out[kind] = value
		return nil
	})
	return out
}

func (a attrs) u32(kind uint16) uint32 {
	if len(a[kind]) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[kind])
}

func (a attrs) text(kind uint16) string { return string(bytes.TrimRight(a[kind], "\x00")) }

// value is the bytes of a struct nft_data.
func (a attrs) value(kind uint16) []byte { return attributes(a[kind])[unix.NFTA_DATA_VALUE] }

// decode turns the expressions of a rule into operations.
func (vm *VM) decode(expressions []byte) (ops []op, err error) {
	err = parse(expressions, func(_ uint16, elem []byte) error {
		e := attributes(elem)
		name := e.text(unix.NFTA_EXPR_NAME)
		o, err := vm.expression(name, attributes(e[unix.NFTA_EXPR_DATA]))
		if err != nil {
			return fmt.Errorf("expression %s: %w", name, err)
		}
		ops = append(ops, o)
		return nil
	})
	return ops, err
}

func (vm *VM) expression(name string, a attrs) (op, error) {
	switch name {
	case "meta":
		return meta(a)
	case "payload":
		return payload(a), nil
	case "ct":
		return ct(a)
	case "fib":
		at, result, flags := reg(a.u32(unix.NFTA_FIB_DREG)), a.u32(unix.NFTA_FIB_RESULT), a.u32(unix.NFTA_FIB_FLAGS)
		return do(func(r *run) { r.word(at, r.p.Fib(result, flags)) }), nil
	case "bitwise":
		from, to := reg(a.u32(unix.NFTA_BITWISE_SREG)), reg(a.u32(unix.NFTA_BITWISE_DREG))
		mask, xor := a.value(unix.NFTA_BITWISE_MASK), a.value(unix.NFTA_BITWISE_XOR)
		return do(func(r *run) {
			for i := range mask {
				r.regs[to+i] = r.regs[from+i]&mask[i] ^ xor[i]
			}
		}), nil
	case "cmp":
		return compare(a)
	case "range":
		at, not := reg(a.u32(unix.NFTA_RANGE_SREG)), a.u32(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ
		from, to := a.value(unix.NFTA_RANGE_FROM_DATA), a.value(unix.NFTA_RANGE_TO_DATA)
		return func(r *run) bool {
			v := r.regs[at : at+len(from)]
			return (bytes.Compare(v, from) >= 0 && bytes.Compare(v, to) <= 0) != not
		}, nil
	case "lookup":
		return vm.lookup(a)
	case "immediate":
		return immediate(a), nil
	case "reject":
		return do(func(r *run) { r.code = drop }), nil
	case "notrack":
		return do(func(r *run) { r.p.State = stateUntracked }), nil
	case "counter", "log", "masq", "nat":
		return do(func(*run) {}), nil
	}
	return nil, fmt.Errorf("is not known here")
}

// do is an operation after which the rule always goes on.
func do(f func(*run)) op { return func(r *run) bool { f(r); return true } }

func meta(a attrs) (op, error) {
	key := a.u32(unix.NFTA_META_KEY)
	if _, writes := a[unix.NFTA_META_SREG]; writes {
		at := reg(a.u32(unix.NFTA_META_SREG))
		if key != unix.NFT_META_MARK {
			return nil, fmt.Errorf("writes %d", key)
		}
		return do(func(r *run) { r.p.Mark = binary.NativeEndian.Uint32(r.regs[at:]) }), nil
	}
	at := reg(a.u32(unix.NFTA_META_DREG))
	name := func(r *run, s string) {
		b := make([]byte, unix.IFNAMSIZ)
		copy(b, s)
		r.store(at, b)
	}
	switch key {
	case unix.NFT_META_MARK:
		return do(func(r *run) { r.word(at, r.p.Mark) }), nil
	case unix.NFT_META_L4PROTO:
		return do(func(r *run) { r.store(at, []byte{r.p.Protocol}) }), nil
	// Without an interface the kernel ends the rule (nft_meta_get_eval), but for names, which are then empty.
	case unix.NFT_META_IIFNAME:
		return do(func(r *run) { name(r, r.p.In) }), nil
	case unix.NFT_META_OIFNAME:
		return do(func(r *run) { name(r, r.p.Out) }), nil
	}
	return nil, fmt.Errorf("reads %d", key)
}

func payload(a attrs) op {
	at, base := reg(a.u32(unix.NFTA_PAYLOAD_DREG)), a.u32(unix.NFTA_PAYLOAD_BASE)
	offset, length := int(a.u32(unix.NFTA_PAYLOAD_OFFSET)), int(a.u32(unix.NFTA_PAYLOAD_LEN))
	return func(r *run) bool {
		header := r.p.Network
		if base == unix.NFT_PAYLOAD_TRANSPORT_HEADER {
			header = r.p.Transport
		}
		if offset+length > len(header) {
			return false // NFT_BREAK
		}
		r.store(at, header[offset:offset+length])
		return true
	}
}

func ct(a attrs) (op, error) {
	at := reg(a.u32(unix.NFTA_CT_DREG))
	switch key := a.u32(unix.NFTA_CT_KEY); key {
	case unix.NFT_CT_STATE:
		return do(func(r *run) { r.word(at, r.p.State) }), nil
	case unix.NFT_CT_STATUS: // nothing is translated here
		return do(func(r *run) { r.word(at, 0) }), nil
	case unix.NFT_CT_MARK:
		return do(func(r *run) { r.word(at, r.p.ConnMark) }), nil
	default:
		return nil, fmt.Errorf("reads %d", key)
	}
}

func compare(a attrs) (op, error) {
	at, want := reg(a.u32(unix.NFTA_CMP_SREG)), a.value(unix.NFTA_CMP_DATA)
	equal := func(r *run) bool { return bytes.Equal(r.regs[at:at+len(want)], want) }
	switch a.u32(unix.NFTA_CMP_OP) {
	case unix.NFT_CMP_EQ:
		return equal, nil
	case unix.NFT_CMP_NEQ:
		return func(r *run) bool { return !equal(r) }, nil
	}
	return nil, fmt.Errorf("operation %d", a.u32(unix.NFTA_CMP_OP))
}

func (vm *VM) lookup(a attrs) (op, error) {
	name, at := a.text(unix.NFTA_LOOKUP_SET), reg(a.u32(unix.NFTA_LOOKUP_SREG))
	s, ok := vm.sets[name]
	if !ok {
		return nil, fmt.Errorf("set %s is not there", name)
	}
	not := a.u32(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0
	_, verdicts := a[unix.NFTA_LOOKUP_DREG]
	return func(r *run) bool {
		v, found := s.find(string(r.regs[at : at+s.keyLen]))
		if verdicts {
			if found {
				r.code, r.target = v.Code, v.Chain
			}
			return found
		}
		return found != not
	}, nil
}

func immediate(a attrs) op {
	if dreg := a.u32(unix.NFTA_IMMEDIATE_DREG); dreg != unix.NFT_REG_VERDICT {
		at, value := reg(dreg), a.value(unix.NFTA_IMMEDIATE_DATA)
		return do(func(r *run) { r.store(at, value) })
	}
	v := attributes(attributes(a[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
	code, chain := int32(v.u32(unix.NFTA_VERDICT_CODE)), v.text(unix.NFTA_VERDICT_CHAIN)
	return do(func(r *run) { r.code, r.target = code, chain })
}
