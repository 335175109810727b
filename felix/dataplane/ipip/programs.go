package ipip

import (
	"bytes"
	_ "embed" // of the bytecode
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

//go:embed bpf/ipip.o
var bytecode []byte

// Reasons why a packet went where it went, as Counters has them.
const (
	Sent        = "sent"         // to another node
	Taken       = "taken"        // from another node
	NotIPv4     = "not-ipv4"     // dropped on the way out
	NoNode      = "no-node"      // dropped: the destination is no node's
	NoRoom      = "no-room"      // dropped: the kernel would not change the packet
	Congested   = "congested"    // dropped on the way in: met congestion, and the inner packet cannot be told
	UnknownNode = "unknown-node" // left to the kernel on the way in, as the next two are
	Fragment    = "fragment"
	Malformed   = "malformed"
)

// counters are the reasons in the order of enum counter in ipip.c.
var counters = []string{Sent, Taken, NotIPv4, NoNode, NoRoom, Congested, UnknownNode, Fragment, Malformed}

// config, destination and node are as in ipip.c.
type config struct {
	Local          [4]byte
	Parent, Device uint32
	MAC            [6]byte
	Several        uint16
}

type destination struct {
	Bits uint32
	Addr [4]byte
}

type node = [4]byte

func destinationOf(p netip.Prefix) destination {
	return destination{Bits: uint32(p.Bits()), Addr: p.Masked().Addr().As4()}
}

func (d destination) prefix() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4(d.Addr), int(d.Bits))
}

// programs are the two programs with the maps they share.
type programs struct {
	settings, encaps, decaps, counters *ebpf.Map

	out, in     *ebpf.Program
	outID, inID ebpf.ProgramID
}

func (p *programs) close() {
	if p == nil {
		return
	}
	for _, m := range []*ebpf.Map{p.settings, p.encaps, p.decaps, p.counters} {
		_ = m.Close()
	}
	_ = p.out.Close()
	_ = p.in.Close()
}

func specification() (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bytecode))
	if err != nil {
		return nil, fmt.Errorf("read the bytecode: %w", err)
	}
	return spec, nil
}

// load gives the programs to the kernel, with maps of an earlier load where they fit.
func load(former map[string]*ebpf.Map) (*programs, error) {
	spec, err := specification()
	if err != nil {
		return nil, err
	}
	_ = rlimit.RemoveMemlock() // kernels before 5.11 count maps as locked memory; a refusal shows when they are made
	fit := map[string]*ebpf.Map{}
	for name, m := range former {
		if s := spec.Maps[name]; s != nil && s.Compatible(m) == nil {
			fit[name] = m
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: fit})
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("loading a program needs root (CAP_BPF and CAP_NET_ADMIN in the initial user namespace): %w", err)
	case err != nil:
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	return assemble(c.Maps, c.Programs[outHook.program], c.Programs[inHook.program])
}

func assemble(maps map[string]*ebpf.Map, out, in *ebpf.Program) (*programs, error) {
	p := &programs{
		settings: maps["ipip_config"], encaps: maps["ipip_encaps"], decaps: maps["ipip_decaps"], counters: maps["ipip_counters"],
		out: out, in: in,
	}
	var err error
	if p.outID, err = id(out); err == nil {
		p.inID, err = id(in)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func id(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("read the program's id: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("the kernel gives programs no ids; it needs to be Linux 5.12 or newer")
	}
	return id, nil
}

// adopt takes over the programs that are attached, by their ids (0: none), so that packets are never without. What is
// missing, or is not what this felix would load, is loaded with the maps that are there.
func adopt(outID, inID ebpf.ProgramID) (*programs, error) {
	spec, err := specification()
	if err != nil {
		return nil, err
	}
	maps := map[string]*ebpf.Map{}
	out, outFits := find(spec, outHook.program, outID, maps)
	in, inFits := find(spec, inHook.program, inID, maps)
	if outFits && inFits && len(maps) == len(spec.Maps) {
		return assemble(maps, out, in)
	}
	defer func() {
		_ = out.Close()
		_ = in.Close()
		for _, m := range maps {
			_ = m.Close()
		}
	}()
	return load(maps)
}

// find opens a program with its maps. It does not fit if it is another one, or shares no maps with what was found before.
func find(spec *ebpf.CollectionSpec, name string, id ebpf.ProgramID, maps map[string]*ebpf.Map) (_ *ebpf.Program, fits bool) {
	if id == 0 {
		return nil, false
	}
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, false
	}
	info, err := p.Info()
	if err != nil {
		return p, false
	}
	fits = spec.Programs[name].Compatible(info) == nil
	ids, _ := info.MapIDs()
	for _, id := range ids {
		fits = collect(id, spec, maps) && fits
	}
	return p, fits
}

// collect opens a map and puts it under its name, unless another is there.
func collect(id ebpf.MapID, spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) bool {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return false
	}
	info, err := m.Info()
	if err != nil || spec.Maps[info.Name] == nil || spec.Maps[info.Name].Compatible(m) != nil {
		_ = m.Close()
		return false
	}
	if there := maps[info.Name]; there != nil {
		_ = m.Close()
		info, err := there.Info()
		if err != nil {
			return false
		}
		same, _ := info.ID()
		return same == id
	}
	maps[info.Name] = m
	return true
}

func (p *programs) config() (c config, err error) {
	if err := p.settings.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("read the programs' settings: %w", err)
	}
	return c, nil
}

func (p *programs) setConfig(c config) error { return p.settings.Put(uint32(0), c) }

// destinations lists the map of destinations.
func (p *programs) destinations() (map[netip.Prefix]netip.Addr, error) {
	out := map[netip.Prefix]netip.Addr{}
	var k destination
	var v node
	all := p.encaps.Iterate()
	for all.Next(&k, &v) {
		out[k.prefix()] = netip.AddrFrom4(v)
	}
	return out, all.Err()
}

// nodes lists the map of nodes whose packets are taken, with the devices to send to them by.
func (p *programs) nodes() (map[netip.Addr]desired.Decap, error) {
	out := map[netip.Addr]desired.Decap{}
	var k node
	var v uint32
	all := p.decaps.Iterate()
	for all.Next(&k, &v) {
		out[netip.AddrFrom4(k)] = desired.Decap{Out: int(v)}
	}
	return out, all.Err()
}

// counted sums the counters over all processors.
func (p *programs) counted() (map[string]uint64, error) {
	out := make(map[string]uint64, len(counters))
	for i, name := range counters {
		var each []uint64
		if err := p.counters.Lookup(uint32(i), &each); err != nil {
			return nil, fmt.Errorf("read counter %q: %w", name, err)
		}
		for _, n := range each {
			out[name] += n
		}
	}
	return out, nil
}

// try has the programs wrap and unwrap a packet, without sending it.
func (p *programs) try() error {
	// These came to Linux last: bpf_redirect_neigh in 5.10, and in 5.12 together bpf_check_mtu and room for a header on
	// a device whose MTU the packet fills.
	for _, helper := range []asm.BuiltinFunc{asm.FnRedirectNeigh, asm.FnCheckMtu} {
		if err := features.HaveProgramHelper(ebpf.SchedCLS, helper); err != nil {
			return fmt.Errorf("it needs Linux 5.12 or newer: %w", err)
		}
	}
	here, there := node{192, 0, 2, 1}, node{192, 0, 2, 2} // RFC 5737
	err := errors.Join(
		p.setConfig(config{Local: here, Parent: 1, Device: 1, MAC: [6]byte{2, 0, 0, 0, 0, 1}}),
		p.encaps.Put(destination{Bits: 32, Addr: there}, here), // to itself, so that the other program takes it
		p.decaps.Put(here, uint32(0)),
	)
	if err != nil {
		return fmt.Errorf("fill the maps: %w", err)
	}
	packet := make([]byte, 14+20+40)
	binary.BigEndian.PutUint16(packet[12:], unix.ETH_P_IP)
	copy(packet[14:], []byte{0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2})
	const redirected = 7 // TC_ACT_REDIRECT
	verdict, wrapped, err := p.out.Test(packet)
	if err == nil && (verdict != redirected || len(wrapped) != len(packet)+20 || !bytes.Equal(wrapped[34:], packet[14:])) {
		err = fmt.Errorf("verdict %d, %d bytes of %d", verdict, len(wrapped), len(packet))
	}
	if err != nil {
		return fmt.Errorf("encapsulate a packet on trial: %w", err)
	}
	verdict, unwrapped, err := p.in.Test(wrapped)
	if err == nil && (verdict != redirected || !bytes.Equal(unwrapped[14:], packet[14:])) {
		err = fmt.Errorf("verdict %d, %d bytes of %d", verdict, len(unwrapped), len(wrapped))
	}
	if err != nil {
		return fmt.Errorf("decapsulate a packet on trial: %w", err)
	}
	return nil
}
