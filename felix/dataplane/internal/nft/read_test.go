package nft

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

func TestRangesAreOfBeginningsAndEnds(t *testing.T) {
	from, to := func(k string) mark { return mark{key: k} }, func(k string) mark { return mark{key: k, end: true} }
	for _, c := range []struct {
		name  string
		marks []mark
		want  []string
	}{
		{"none", nil, nil},
		{"one", []mark{to("b"), from("a")}, []string{"ab"}},
		{"touching", []mark{from("a"), to("b"), from("b"), to("c")}, []string{"ab", "bc"}},
		{"to the end of the space", []mark{from("a"), to("b"), from("x")}, []string{"ab", "x"}},
		{"a closing mark before the first, as nft(8) makes it", []mark{to("0"), from("a"), to("b")}, []string{"ab"}},
	} {
		got := pair(c.marks)
		assert.Len(t, got, len(c.want), c.name)
		for _, k := range c.want {
			assert.Contains(t, got, k, c.name)
		}
	}
}

func TestElementsAreCutIntoMessages(t *testing.T) {
	tab := Table{IP4, "t"}
	var many []Element
	for i := range 10_000 {
		many = append(many, Element{Key: string([]byte{10, 0, byte(i >> 8), byte(i), 10, 0, byte(i >> 8), byte(i) + 1})})
	}
	msgs := tab.AddElements("s", SetSpec{Key: IP4.Address(), Interval: true}, many)
	n := 0
	for _, m := range msgs {
		assert.Less(t, m.Size(), 64<<10)
		for typ, v := range nlsock.Attrs(m.Body[4:]) {
			if typ == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				for range nlsock.Attrs(v) {
					n++
				}
			}
		}
	}
	assert.Equal(t, 2*len(many), n, "a beginning and an end each")
	assert.Empty(t, tab.AddElements("s", SetSpec{}, nil))
}

func TestChangesAreRead(t *testing.T) {
	tab := Table{IP6, "calico"}
	for _, c := range []struct {
		m    nlsock.Message
		want Change
	}{
		{tab.Add(), Change{Table: tab, What: "table"}},
		{tab.Delete(), Change{Table: tab, What: "table", Gone: true}},
		{tab.AddChain("c", nil), Change{Table: tab, What: "chain", Name: "c"}},
		{tab.AddRule("c", nil, "x"), Change{Table: tab, What: "rule", Name: "c"}},
		{tab.FlushChain("c"), Change{Table: tab, What: "rule", Name: "c", Gone: true}},
		{tab.DeleteSet("s"), Change{Table: tab, What: "set", Name: "s", Gone: true}},
		{tab.AddElements("s", SetSpec{Key: Port}, []Element{{Key: "ab"}})[0], Change{Table: tab, What: "element", Name: "s"}},
	} {
		got, ok := ReadChange(nlsock.Event{Kind: c.m.Type, Body: c.m.Body})
		assert.True(t, ok)
		assert.Equal(t, c.want, got)
	}
	_, ok := ReadChange(nlsock.Event{Kind: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN, Body: make([]byte, 8)})
	assert.False(t, ok)
}

func FuzzRead(f *testing.F) {
	f.Add(Table{IP4, "t"}.AddElements("s", SetSpec{Key: IfName, Verdicts: true}, []Element{{Key: "0123456789abcdef", Verdict: Verdict{Jump, "x"}}})[0].Body)
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = comment(b)
		_ = readVerdict(b)
		_ = readElement(b)
		_, _ = ReadChange(nlsock.Event{Kind: unix.NFNL_SUBSYS_NFTABLES << 8, Body: b})
	})
}
