package nft

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Chain is a chain as the kernel has it.
type Chain struct {
	Base  *Base
	Rules []string // the rules' comments, in order
}

// Set is a set as the kernel has it.
type Set struct {
	Spec     SetSpec
	Elements map[string]Verdict // by Element.Key; the zero verdict in sets that are not verdict maps
}

// Contents is everything in a table.
type Contents struct {
	Exists bool
	Chains map[string]Chain
	Sets   map[string]Set
}

// Read reads a table. What is not there is empty; a family that the kernel does not have is too.
func (t Table) Read(ctx context.Context, c *nlsock.Conn) (Contents, error) {
	out := Contents{Chains: map[string]Chain{}, Sets: map[string]Set{}}
	err := errors.Join(t.readTable(ctx, c, &out), t.readChains(ctx, c, &out), t.readRules(ctx, c, &out), t.readSets(ctx, c, &out))
	return out, err
}

func (t Table) dump(ctx context.Context, c *nlsock.Conn, kind uint16, fill func([]byte) []byte, restart func(), each func(map[uint16][]byte)) error {
	m := t.message(kind, 0, fill)
	err := c.Dump(ctx, m, restart, func(_ uint16, body []byte) error {
		if len(body) < 4 || body[0] != byte(t.Family) {
			return nil
		}
		attrs := maps.Collect(nlsock.Attrs(body[4:]))
		if nlsock.CString(attrs[1]) == t.Name {
			each(attrs)
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	return err
}

func (t Table) readTable(ctx context.Context, c *nlsock.Conn, out *Contents) error {
	return t.dump(ctx, c, unix.NFT_MSG_GETTABLE, nil, func() { out.Exists = false }, func(map[uint16][]byte) { out.Exists = true })
}

func (t Table) readChains(ctx context.Context, c *nlsock.Conn, out *Contents) error {
	return t.dump(ctx, c, unix.NFT_MSG_GETCHAIN, nil, func() { clear(out.Chains) }, func(a map[uint16][]byte) {
		var ch Chain
		if hook, ok := a[unix.NFTA_CHAIN_HOOK]; ok {
			ch.Base = &Base{Type: nlsock.CString(a[unix.NFTA_CHAIN_TYPE])}
			for typ, v := range nlsock.Attrs(hook) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					ch.Base.Hook = nlsock.BE32(v)
				case unix.NFTA_HOOK_PRIORITY:
					ch.Base.Priority = int32(nlsock.BE32(v))
				case hookDevice:
					ch.Base.Device = nlsock.CString(v)
				}
			}
			if nlsock.BE32(a[unix.NFTA_CHAIN_POLICY]) != acceptCode {
				ch.Base.Type += " with a foreign policy" // differs from all of ours
			}
		}
		out.Chains[nlsock.CString(a[unix.NFTA_CHAIN_NAME])] = ch
	})
}

func (t Table) readRules(ctx context.Context, c *nlsock.Conn, out *Contents) error {
	restart := func() {
		for name, ch := range out.Chains {
			ch.Rules = nil
			out.Chains[name] = ch
		}
	}
	return t.dump(ctx, c, unix.NFT_MSG_GETRULE, nil, restart, func(a map[uint16][]byte) {
		name := nlsock.CString(a[unix.NFTA_RULE_CHAIN])
		ch := out.Chains[name]
		ch.Rules = append(ch.Rules, comment(a[unix.NFTA_RULE_USERDATA]))
		out.Chains[name] = ch
	})
}

func comment(userdata []byte) string {
	for len(userdata) >= 2 {
		typ, n := userdata[0], int(userdata[1])
		if 2+n > len(userdata) {
			return ""
		}
		if typ == 0 {
			return nlsock.CString(userdata[2 : 2+n])
		}
		userdata = userdata[2+n:]
	}
	return ""
}

func (t Table) readSets(ctx context.Context, c *nlsock.Conn, out *Contents) error {
	err := t.dump(ctx, c, unix.NFT_MSG_GETSET, nil, func() { clear(out.Sets) }, func(a map[uint16][]byte) {
		flags := nlsock.BE32(a[unix.NFTA_SET_FLAGS])
		if flags&unix.NFT_SET_ANONYMOUS != 0 {
			return // part of a rule; ours have none
		}
		out.Sets[nlsock.CString(a[unix.NFTA_SET_NAME])] = Set{Spec: SetSpec{
			Key:      Type{nlsock.BE32(a[unix.NFTA_SET_KEY_TYPE]), nlsock.BE32(a[unix.NFTA_SET_KEY_LEN])},
			Interval: flags&unix.NFT_SET_INTERVAL != 0,
			Verdicts: flags&unix.NFT_SET_MAP != 0,
		}}
	})
	if err != nil {
		return err
	}
	for name, s := range out.Sets {
		if s.Elements, err = t.readElements(ctx, c, name, s.Spec); err != nil {
			return err
		}
		out.Sets[name] = s
	}
	return nil
}

type mark struct {
	key     string
	end     bool
	verdict Verdict
}

func (t Table) readElements(ctx context.Context, c *nlsock.Conn, set string, spec SetSpec) (map[string]Verdict, error) {
	var marks []mark
	err := t.dump(ctx, c, unix.NFT_MSG_GETSETELEM, func(b []byte) []byte {
		return nlsock.AttrString(b, unix.NFTA_SET_ELEM_LIST_SET, set)
	}, func() { marks = nil }, func(a map[uint16][]byte) {
		for _, e := range nlsock.Attrs(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
			marks = append(marks, readElement(e))
		}
	})
	if err != nil {
		return nil, err
	}
	if spec.Interval {
		return pair(marks), nil
	}
	out := make(map[string]Verdict, len(marks))
	for _, m := range marks {
		out[m.key] = m.verdict
	}
	return out, nil
}

func readElement(b []byte) (m mark) {
	for typ, v := range nlsock.Attrs(b) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			for _, d := range nlsock.Attrs(v) {
				m.key = string(d)
			}
		case unix.NFTA_SET_ELEM_FLAGS:
			m.end = nlsock.BE32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_DATA:
			for typ, d := range nlsock.Attrs(v) {
				if typ == unix.NFTA_DATA_VERDICT {
					m.verdict = readVerdict(d)
				}
			}
		}
	}
	return m
}

func readVerdict(b []byte) (v Verdict) {
	for typ, d := range nlsock.Attrs(b) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			v.Code = VerdictCode(nlsock.BE32(d))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = nlsock.CString(d)
		}
	}
	return v
}

// pair makes ranges of their beginnings and ends. One may end where the next begins.
func pair(marks []mark) map[string]Verdict {
	slices.SortFunc(marks, func(a, b mark) int {
		if c := cmp.Compare(a.key, b.key); c != 0 {
			return c
		}
		if a.end == b.end {
			return 0
		}
		if a.end {
			return -1
		}
		return 1
	})
	out := make(map[string]Verdict, len(marks)/2)
	open := ""
	for _, m := range marks {
		switch {
		case !m.end:
			if open != "" {
				out[open] = Verdict{}
			}
			open = m.key
		case open != "":
			out[open+m.key] = Verdict{}
			open = ""
		}
	}
	if open != "" {
		out[open] = Verdict{}
	}
	return out
}
