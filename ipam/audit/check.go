package audit

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
)

// Facts are all objects that have a say in address management.
type Facts struct {
	Blocks     []*api.IPAMBlock
	Affinities []*api.BlockAffinity
	Handles    []*api.IPAMHandle
	Pools      []*api.IPPool
	Nodes      []*api.Node
	Endpoints  []*api.WorkloadEndpoint

	Services      []Service // of type LoadBalancer
	KnowsServices bool      // false means that addresses of Services are not judged
}

// Service is one of type LoadBalancer.
type Service struct {
	Namespace, Name string
	Addrs           []netip.Addr // that its status shows, whoever gave them
}

func (s Service) words() string { return fmt.Sprintf("Service(%s/%s)", s.Namespace, s.Name) }

// Findings is what the facts come to.
type Findings struct {
	Blocks                                   []*api.IPAMBlock        // in address order
	Pools                                    []netip.Prefix          // that are not disabled
	Allocations                              []Allocation            // in address order; an address may be there twice
	Users                                    map[netip.Addr][]string // who has an address: endpoints and tunnels, in words
	TunnelAddrs, EndpointAddrs, ServiceAddrs int                     // that are in use
	GoodHandles                              int
	Unjudged                                 int // addresses of which only Kubernetes knows who has them

	Problems []Problem // by kind, and in address or name order
}

// Allocation is an address that a block holds as given out.
type Allocation struct {
	block.Allocation
	Block    netip.Prefix
	Affinity string   // of the block; empty for nobody
	Users    []string // who has it, in words; empty means that it is lost
}

// Node is who the address was given to: as its attributes say, else the block's owner.
func (a Allocation) Node() string {
	if n := a.Owner[api.OwnerNode]; n != "" {
		return n
	}
	n, _ := strings.CutPrefix(a.Affinity, string(api.AffinityHost)+":")
	return n
}

// Borrowed tells whether the block is not the node's own.
func (a Allocation) Borrowed() bool {
	owner, _ := strings.CutPrefix(a.Affinity, string(api.AffinityHost)+":")
	return a.Node() != owner
}

// Kind is a kind of problem.
type Kind string

// The kinds of problems.
const (
	Leaked         Kind = "leaked"         // given out, and nothing has it
	NotInPool      Kind = "notInPool"      // something has it, and it is in no pool that is enabled
	NotAllocated   Kind = "notAllocated"   // something has it, and no block holds it as given out
	Shared         Kind = "shared"         // several have it
	Twice          Kind = "twice"          // two blocks hold it as given out
	OrphanHandle   Kind = "orphanHandle"   // a handle without any address
	MissingHandle  Kind = "missingHandle"  // addresses of a handle that does not exist
	HandleTooLow   Kind = "handleTooLow"   // a handle counts too few addresses: releasing by it would miss some
	InvalidBlock   Kind = "invalidBlock"   // a block that contradicts itself
	BrokenAffinity Kind = "brokenAffinity" // a block and its affinity contradict each other
)

// Problem is one thing that is not as it should be.
type Problem struct {
	Kind    Kind
	Subject string // address, handle or block
	Text    string // what is wrong with it
}

// Of returns the problems of some kinds.
func (f Findings) Of(kinds ...Kind) []Problem {
	var out []Problem
	for _, p := range f.Problems {
		if slices.Contains(kinds, p.Kind) {
			out = append(out, p)
		}
	}
	return out
}

func (f *Findings) complain(kind Kind, subject fmt.Stringer, format string, args ...any) {
	f.complainOf(kind, subject.String(), format, args...)
}

func (f *Findings) complainOf(kind Kind, subject, format string, args ...any) {
	f.Problems = append(f.Problems, Problem{kind, subject, fmt.Sprintf(format, args...)})
}

// Check compares everything with everything.
func Check(facts Facts) Findings {
	f := Findings{Users: map[netip.Addr][]string{}}
	for _, p := range facts.Pools {
		if !p.Spec.Disabled && p.Prefix().IsValid() {
			f.Pools = append(f.Pools, p.Prefix())
		}
	}
	f.findUsers(facts)
	nodes := map[string]bool{}
	for _, n := range facts.Nodes {
		nodes[n.Name] = true
	}
	services := map[string]bool{}
	for _, s := range facts.Services {
		services[s.words()] = true
	}
	f.readBlocks(facts.Blocks, func(a *Allocation) {
		switch a.Purpose() {
		case block.Windows:
			a.Users = append(a.Users, "Reserved for Windows")
		case block.Cooling:
			a.Users = append(a.Users, "Cooling down")
		case block.Warm:
			if node := a.Owner[api.OwnerNode]; nodes[node] {
				a.Users = append(a.Users, fmt.Sprintf("Node(%s) warm pool", node))
			}
		case block.Service:
			// It has an address before its status shows it.
			who := Service{Namespace: a.Owner[api.OwnerNamespace], Name: a.Owner[api.OwnerService]}.words()
			switch {
			case !facts.KnowsServices:
				f.doNotJudge(a)
			case services[who] && !slices.Contains(a.Users, who):
				a.Users = append(a.Users, who)
			}
		case block.Machine:
			f.doNotJudge(a)
		}
	})
	f.judgeAddresses()
	f.judgeHandles(facts.Handles)
	f.judgeAffinities(facts.Affinities)
	return f
}

func (f *Findings) findUsers(facts Facts) {
	use := func(a netip.Addr, who string) { f.Users[a] = append(f.Users[a], who) }
	for _, n := range byName(facts.Nodes) {
		for a, what := range TunnelAddrs(n) {
			use(a, fmt.Sprintf("Node(%s) %s", n.Name, what))
			f.TunnelAddrs++
		}
	}
	for _, ep := range byName(facts.Endpoints) {
		for _, a := range EndpointAddrs(ep) {
			use(a, fmt.Sprintf("Workload(%s/%s)", ep.Namespace, ep.Name))
			f.EndpointAddrs++
		}
	}
	for _, s := range facts.Services {
		for _, a := range s.Addrs {
			if slices.ContainsFunc(facts.Pools, func(p *api.IPPool) bool { return p.Prefix().Contains(a) }) { // others have addresses of their own
				use(a, s.words())
				f.ServiceAddrs++
			}
		}
	}
}

func byName[T api.Object](list []T) []T {
	return slices.SortedStableFunc(slices.Values(list), func(a, b T) int {
		return cmp.Or(strings.Compare(a.GetNamespace(), b.GetNamespace()), strings.Compare(a.GetName(), b.GetName()))
	})
}

// doNotJudge says of an address that nobody was asked who has it.
func (f *Findings) doNotJudge(a *Allocation) {
	a.Users = append(a.Users, "not looked for: "+a.Whom())
	f.Unjudged++
}

// readBlocks lists what the blocks hold as given out, and who has it: endpoints and tunnels, and whom whose adds.
func (f *Findings) readBlocks(blocks []*api.IPAMBlock, whose func(*Allocation)) {
	for _, obj := range blocks {
		b, err := block.Of(obj.DeepCopy()) // which fills in what old data lacks
		if err != nil {
			f.complainOf(InvalidBlock, obj.Name, "%v", err)
			continue
		}
		f.Blocks = append(f.Blocks, obj)
		for has := range b.All() {
			a := Allocation{Allocation: has, Block: b.CIDR(), Affinity: b.Affinity(), Users: slices.Clone(f.Users[has.Addr])}
			whose(&a)
			f.Allocations = append(f.Allocations, a)
		}
	}
	slices.SortFunc(f.Blocks, func(x, y *api.IPAMBlock) int { return comparePrefix(x.Name, y.Name) })
	slices.SortStableFunc(f.Allocations, func(x, y Allocation) int {
		return cmp.Or(x.Addr.Compare(y.Addr), x.Block.Compare(y.Block))
	})
}

func comparePrefix(x, y string) int {
	a, errA := netip.ParsePrefix(x)
	b, errB := netip.ParsePrefix(y)
	if errA != nil || errB != nil {
		return strings.Compare(x, y)
	}
	return a.Compare(b)
}

// judgeAddresses compares what is given out with what is in use.
func (f *Findings) judgeAddresses() {
	held := map[netip.Addr]netip.Prefix{}
	for _, a := range f.Allocations {
		if first, twice := held[a.Addr]; twice {
			f.complain(Twice, a.Addr, "given out of two blocks, %s and %s", first, a.Block)
		}
		held[a.Addr] = a.Block
		if len(a.Users) == 0 {
			f.complain(Leaked, a.Addr, "leaked; attrs %s", Attributes(a.Allocation))
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(f.Users), netip.Addr.Compare) {
		users := strings.Join(f.Users[a], ", ")
		if len(f.Users[a]) > 1 {
			f.complain(Shared, a, "has multiple owners: %s", users)
		}
		if _, given := held[a]; given {
			continue
		}
		if slices.ContainsFunc(f.Pools, func(p netip.Prefix) bool { return p.Contains(a) }) {
			f.complain(NotAllocated, a, "in use by %s and in active IPAM pool but has no IPAM allocation.", users)
		} else {
			f.complain(NotInPool, a, "in use by %s is not in any active IP pool.", users)
		}
	}
}

// judgeHandles compares what handles count with what blocks hold.
func (f *Findings) judgeHandles(handles []*api.IPAMHandle) {
	has := map[string]map[string]int{} // handle → block → addresses
	for _, a := range f.Allocations {
		if a.Handle == "" || a.Purpose() == block.Windows {
			continue
		}
		if has[a.Handle] == nil {
			has[a.Handle] = map[string]int{}
		}
		has[a.Handle][a.Block.String()]++
	}
	exists := map[string]bool{}
	for _, h := range byName(handles) {
		exists[h.Name] = true
		if has[h.Name] == nil {
			f.complainOf(OrphanHandle, h.Name, "doesn't have any active IPs.")
			continue
		}
		f.GoodHandles++
		for _, cidr := range slices.Sorted(maps.Keys(has[h.Name])) {
			if n := has[h.Name][cidr]; h.Spec.Block[cidr] < n {
				f.complainOf(HandleTooLow, h.Name, "counts %d addresses of block %s, which has %d of it.", h.Spec.Block[cidr], cidr, n)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(has)) {
		if !exists[id] {
			f.complainOf(MissingHandle, id, "is in use in a block but doesn't exist.")
		}
	}
}

// judgeAffinities compares what blocks and affinities say of each other. A claim or a release that is under way is no
// contradiction.
func (f *Findings) judgeAffinities(affinities []*api.BlockAffinity) {
	owner := map[string]string{}
	for _, b := range f.Blocks {
		owner[b.Spec.CIDR] = ""
		if b.Spec.Affinity != nil {
			owner[b.Spec.CIDR] = *b.Spec.Affinity
		}
	}
	claimed := map[string]bool{}
	for _, aff := range byName(affinities) {
		kind, node, cidr, err := api.ParseAffinityName(aff.Name)
		if err != nil || aff.Spec.Deleted {
			continue
		}
		who := string(kind) + ":" + node
		claimed[who+" "+cidr.String()] = true
		if aff.Spec.State != api.AffinityConfirmed && aff.Spec.State != "" {
			continue
		}
		switch by, exists := owner[cidr.String()]; {
		case !exists:
			f.complain(BrokenAffinity, cidr, "is claimed by %s, but there is no such block.", who)
		case by != who:
			f.complain(BrokenAffinity, cidr, "is claimed by %s, but the block belongs to %s.", who, cmp.Or(by, "nobody"))
		}
	}
	for _, b := range f.Blocks {
		if by := owner[b.Spec.CIDR]; by != "" && !claimed[by+" "+b.Spec.CIDR] {
			f.complainOf(BrokenAffinity, b.Spec.CIDR, "belongs to %s, which has no affinity to it.", by)
		}
	}
}

// Attributes prints what is stored with an address on one line.
func Attributes(a block.Allocation) string {
	extra := make([]string, 0, len(a.Owner))
	for _, k := range slices.Sorted(maps.Keys(a.Owner)) {
		extra = append(extra, k+"="+a.Owner[k])
	}
	return fmt.Sprintf("Main:%s Extra:%s", cmp.Or(a.Handle, "<none>"), strings.Join(extra, ","))
}
