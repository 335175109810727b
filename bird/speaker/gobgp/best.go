package gobgp

import (
	"encoding/binary"
	"net/netip"
	"strings"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/muslin-net/muslin/bird/speaker"
)

// bestReader reads best paths from gobgp's watch. Attributes cost more to read than all else, and prefixes by the thousand
// have the same: it remembers lists of paths by the bytes that they came in, so that each is read once, and held once by
// whoever keeps them.
type bestReader struct {
	known map[string][]speaker.Path
	key   []byte
}

// rememberedLists is how many lists of paths are remembered before all are forgotten.
const rememberedLists = 4096

func newBestReader() *bestReader { return &bestReader{known: map[string][]speaker.Path{}} }

// tell passes on the outcome of path selection. gobgp sends either one path for each of several prefixes, or all equal
// paths of one prefix; both ways the paths of a prefix follow each other.
func (r *bestReader) tell(events speaker.Events, paths []*api.Path) {
	prefixes := make([]netip.Prefix, len(paths)) // not valid: of another family; none is configured
	for i, p := range paths {
		prefixes[i], _ = prefixOf(p)
	}
	for len(paths) > 0 {
		n := 1
		for n < len(paths) && prefixes[n] == prefixes[0] {
			n++
		}
		if prefixes[0].IsValid() {
			events.Best(prefixes[0], r.list(paths[:n]))
		}
		paths, prefixes = paths[n:], prefixes[n:]
	}
}

// list reads the paths of one prefix, but for those that are gone, and our own.
func (r *bestReader) list(paths []*api.Path) []speaker.Path {
	r.key = r.key[:0]
	for _, p := range paths {
		r.key = appendIdentity(r.key, p)
	}
	if known, ok := r.known[string(r.key)]; ok {
		return known
	}
	var out []speaker.Path
	for _, p := range paths {
		if p.IsWithdraw || !address(p.NeighborIp).IsValid() {
			continue
		}
		if path, err := fromPath(p); err == nil && path.NextHop.IsValid() {
			path.Prefix = netip.Prefix{}
			out = append(out, path)
		}
	}
	if len(r.known) >= rememberedLists {
		clear(r.known)
	}
	r.known[string(r.key)] = out
	return out
}

// appendIdentity appends all of a path that is read, but for the prefix.
func appendIdentity(key []byte, p *api.Path) []byte {
	flags := byte(0)
	for i, set := range []bool{p.IsWithdraw, p.Stale, p.Best} {
		if set {
			flags |= 1 << i
		}
	}
	key = appendText(append(key, flags), p.NeighborIp)
	for _, attr := range p.Pattrs {
		_, kind, _ := strings.Cut(attr.TypeUrl, "apipb.")
		key = appendText(key, kind)
		if kind != "MpReachNLRIAttribute" {
			key = appendText(key, string(attr.Value))
			continue
		}
		var reach api.MpReachNLRIAttribute // it names the prefix, too
		if attr.UnmarshalTo(&reach) == nil {
			key = appendText(key, strings.Join(reach.NextHops, " "))
		}
	}
	return appendText(key, "") // a text of no bytes is no kind
}

// appendText appends a text so that where it ends is not lost.
func appendText(key []byte, text string) []byte {
	return append(binary.AppendUvarint(key, uint64(len(text))), text...)
}
