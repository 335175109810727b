package bird2

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TimeFormat is how BIRD writes times, as the file tells it to: local time.
const TimeFormat = "2006-01-02 15:04:05.000"

// Session is a BGP session, as BIRD shows it to "show protocols all".
type Session struct {
	Name, Description string
	Address, Source   netip.Addr // Source is not valid while there is no connection
	ASNumber, LocalAS uint32
	State             string // BIRD's: Idle, Connect, Active, Passive, OpenSent, OpenConfirm, Established, Close, Down
	Since             time.Time
	LastError         string
	Restarting        bool // the peer restarts and its routes are kept

	Accepted, Filtered, Exported uint64 // routes: taken from the peer, rejected, sent
}

// Sessions reads the answer to "show protocols all", line by line; BIRD's times are in a zone.
type Sessions struct {
	Zone *time.Location
	List []Session

	within bool // a session
}

// Take reads a line.
func (s *Sessions) Take(line string) {
	if line == "" {
		return
	}
	if line[0] != ' ' && line[0] != '\t' {
		// Name, Proto, Table, State, and Since, which are two words.
		f := strings.Fields(line)
		if s.within = len(f) > 1 && f[1] == "BGP"; !s.within {
			return
		}
		s.List = append(s.List, Session{Name: f[0]})
		if len(f) > 5 {
			s.List[len(s.List)-1].Since, _ = time.ParseInLocation(TimeFormat, f[4]+" "+f[5], s.Zone)
		}
		return
	}
	if !s.within {
		return
	}
	now := &s.List[len(s.List)-1]
	key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
	switch value = strings.TrimSpace(value); key {
	case "Description":
		now.Description = value
	case "BGP state":
		now.State = value
	case "Neighbor address":
		now.Address, _ = netip.ParseAddr(value)
	case "Neighbor AS":
		now.ASNumber = number(value)
	case "Local AS":
		now.LocalAS = number(value)
	case "Source address":
		now.Source, _ = netip.ParseAddr(value)
	case "Last error":
		now.LastError = strings.Join(strings.Fields(value), " ")
	case "Neighbor graceful restart active":
		now.Restarting = true
	case "Routes":
		for part := range strings.SplitSeq(value, ", ") {
			switch count, what, _ := strings.Cut(part, " "); what {
			case "imported":
				now.Accepted = uint64(number(count))
			case "filtered":
				now.Filtered = uint64(number(count))
			case "exported":
				now.Exported = uint64(number(count))
			}
		}
	}
}

func number(text string) uint32 {
	n, _ := strconv.ParseUint(text, 10, 32)
	return uint32(n)
}

// Route is a way to a prefix in BIRD's table.
type Route struct {
	Prefix      netip.Prefix
	Protocol    string // that it comes from, the name of a session if it is one of BGP
	Best        bool
	NextHop     netip.Addr // not valid for what leads nowhere, or to a link
	Metric      uint32     // of the kernel's route: that of what was learned from it, or the complement of the local preference
	Preference  uint32     // local preference
	MED         uint32
	Origin      string // "igp", "egp", "incomplete"; empty if it is not of BGP
	ASPath      []uint32
	Communities []string // "64512:7", "64512:1:2"
}

// Routes reads the answer to "show route all", line by line, and hands each route on.
type Routes struct {
	Yield func(Route)

	prefix netip.Prefix
	now    Route
	any    bool
}

// way is the rest of a route's first line: what it leads to, its protocol, and whether it is the best.
var way = regexp.MustCompile(`^(\S*)\s+(?:unicast|blackhole|unreachable|prohibited) \[(\S+) [^\]]*\]( [*!])?`)

// Take reads a line.
func (r *Routes) Take(line string) {
	if m := way.FindStringSubmatch(line); m != nil && !strings.HasPrefix(line, "\t") {
		r.End()
		if m[1] != "" { // else it is another way to the same
			r.prefix, _ = netip.ParsePrefix(m[1])
		}
		r.now, r.any = Route{Prefix: r.prefix, Protocol: m[2], Best: m[3] != ""}, r.prefix.IsValid()
		return
	}
	line = strings.TrimSpace(line)
	if via, ok := strings.CutPrefix(line, "via "); ok && !r.now.NextHop.IsValid() {
		r.now.NextHop = firstAddr(via)
		return
	}
	key, value, ok := strings.Cut(line, ": ")
	if !ok {
		return
	}
	switch key {
	case "BGP.next_hop":
		r.now.NextHop = firstAddr(value)
	case "BGP.local_pref":
		r.now.Preference = number(value)
		r.now.Metric = maxPreference - min(r.now.Preference, maxPreference)
	case "Kernel.metric":
		r.now.Metric = number(value)
	case "BGP.med":
		r.now.MED = number(value)
	case "BGP.origin":
		r.now.Origin = strings.ToLower(value)
	case "BGP.as_path":
		for word := range strings.FieldsFuncSeq(value, func(c rune) bool { return c < '0' || c > '9' }) {
			r.now.ASPath = append(r.now.ASPath, number(word))
		}
	case "BGP.community", "BGP.large_community":
		for one := range strings.SplitSeq(value, ")") {
			if one = strings.NewReplacer("(", "", " ", "").Replace(one); one != "" {
				r.now.Communities = append(r.now.Communities, strings.ReplaceAll(one, ",", ":"))
			}
		}
	}
}

// End hands the last route on.
func (r *Routes) End() {
	if r.any {
		slices.Sort(r.now.Communities)
		r.Yield(r.now)
	}
	r.any = false
}

func firstAddr(words string) netip.Addr {
	first, _, _ := strings.Cut(words, " ")
	a, _ := netip.ParseAddr(first)
	return a
}
