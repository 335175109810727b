package lease

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

// aJournal is the life of a node as bytes, and the state after each record, by its number.
func aJournal(t testing.TB) (data []byte, states []State) {
	s := NewState("boot")
	class4, class6 := ClassOf(4), ClassOf(6, "blue", "green")
	records := []Record{
		{Op: OpBegin, Epoch: 7},
		{Op: OpTerms, Cooldown: time.Minute},
		{Op: OpStock, Class: &class4, Addrs: []netip.Addr{addr(1), addr(2), addr(3)}, Sequences: []uint64{1, 2, 3}},
		{Op: OpStock, Class: &class6, Addrs: []netip.Addr{netip.MustParseAddr("fd00::1")}, Sequences: []uint64{9}},
		{Op: OpLend, Handle: "net.c1", Attributes: map[string]string{"pod": "web"}, Addrs: []netip.Addr{addr(1), netip.MustParseAddr("fd00::1")}, At: 5},
		{Op: OpSettle, Addrs: []netip.Addr{addr(1), netip.MustParseAddr("fd00::1")}},
		{Op: OpOwe, Handle: "net.c1", At: 6},
		{Op: OpDrop, Addrs: []netip.Addr{addr(1), netip.MustParseAddr("fd00::1")}},
		{Op: OpPaid, Handle: "net.c1"},
		{Op: OpLend, Handle: "net.c2", Addrs: []netip.Addr{addr(2)}, At: 7},
		{Op: OpBack, Addrs: []netip.Addr{addr(2)}, At: 8},
		{Op: OpReturn, Addrs: []netip.Addr{addr(3), addr(4)}, Sequences: []uint64{3, 4}, At: 9},
		{Op: OpHold, Handle: "net.c3"},
		{Op: OpFence},
	}
	data = EncodeState(1, s)
	states = []State{{}, s.Clone()}
	for i, r := range records {
		require.NoError(t, s.Apply(r), r.Op)
		data = Encode(data, uint64(i+2), r)
		states = append(states, s.Clone())
	}
	return data, states
}

// Wherever a journal is torn, what is before is read, and it depends on what was promised whether that is enough.
func TestAJournalTornAtAnyByte(t *testing.T) {
	data, states := aJournal(t)
	for cut := range len(data) + 1 {
		for _, torn := range [][]byte{data[:cut], append(bytes.Clone(data[:cut]), "garbage of a torn write"...)} {
			s, number, good, err := Decode(torn)
			require.Equal(t, good != len(torn) || len(torn) == 0, err != nil)
			require.LessOrEqual(t, good, cut)
			if number > 0 {
				require.Equal(t, states[number], s)
			}
			for _, promised := range []uint64{0, max(number, 1) - 1, number, number + 1, uint64(len(states))} {
				got, _, _, fate := Recover(torn, Witness{Boot: "boot", Number: promised}, "boot", nil)
				if fate == Kept {
					require.LessOrEqual(t, promised, number, "nothing that was promised is missing")
					require.Equal(t, s, got)
				} else {
					require.Equal(t, Damaged, fate)
					require.Zero(t, got.Epoch, "nothing is lent before typha has spoken")
				}
			}
		}
	}
}

func TestADamagedByteIsSeen(t *testing.T) {
	data, states := aJournal(t)
	last := uint64(len(states) - 1)
	for i := range data {
		for _, flip := range []byte{1, 0x80} {
			damaged := bytes.Clone(data)
			damaged[i] ^= flip
			_, _, _, err := Decode(damaged)
			require.ErrorIs(t, err, ErrDamaged)
			_, number, _, fate := Recover(damaged, Witness{Boot: "boot", Number: last}, "boot", nil)
			require.Equal(t, Damaged, fate)
			require.GreaterOrEqual(t, number, last, "numbers go on, so that an old witness vouches for nothing new")
		}
	}
}

func TestFatesOfAJournal(t *testing.T) {
	data, states := aJournal(t)
	last := uint64(len(states) - 1)
	data = Encode(data, last+1, Record{Op: OpBegin, Epoch: 8})
	class := ClassOf(4)
	data = Encode(data, last+2, Record{Op: OpStock, Class: &class, Addrs: []netip.Addr{addr(1), addr(2)}, Sequences: []uint64{5, 6}})
	data = Encode(data, last+3, Record{Op: OpLend, Handle: "net.c9", Addrs: []netip.Addr{addr(1)}})
	last += 3
	living := []Claim{{Addr: addr(1), Handle: "net.c5"}}
	for name, row := range map[string]struct {
		data   []byte
		w      Witness
		boot   string
		fate   Fate
		epoch  uint64
		claims []Claim
		lent   []netip.Addr
		debts  []string
	}{
		"the process was ended":            {data, Witness{Boot: "boot", Number: last}, "boot", Kept, 8, nil, []netip.Addr{addr(1)}, []string{"net.c3"}},
		"a write was not promised yet":     {data, Witness{Boot: "boot", Number: last - 1}, "boot", Kept, 8, nil, []netip.Addr{addr(1)}, []string{"net.c3"}},
		"the host booted, or is restored":  {data, Witness{}, "boot-2", Rebooted, 0, living, nil, []string{"net.c3", "net.c9"}},
		"the witness outlived the boot":    {data, Witness{Boot: "boot", Number: last}, "boot-2", Rebooted, 0, living, nil, []string{"net.c3", "net.c9"}},
		"an older journal is in its place": {data, Witness{Boot: "boot", Number: last + 1}, "boot", Damaged, 0, living, nil, []string{"net.c3"}},
		"the witness is gone":              {data, Witness{}, "boot", Damaged, 0, living, nil, []string{"net.c3"}},
		"there never was one":              {nil, Witness{}, "boot", Fresh, 0, living, nil, nil},
		"it is gone":                       {nil, Witness{Boot: "boot", Number: 3}, "boot", Damaged, 0, living, nil, nil},
		"it is no journal":                 {[]byte("hello, world"), Witness{Boot: "boot", Number: 3}, "boot", Damaged, 0, living, nil, nil},
		"the beginning is damaged":         {data[1:], Witness{}, "boot-2", Damaged, 0, living, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, number, claims, fate := Recover(row.data, row.w, row.boot, living)
			require.Equal(t, row.fate, fate)
			require.Equal(t, row.epoch, s.Epoch)
			require.Equal(t, row.claims, claims)
			require.Equal(t, row.lent, s.in(Lent))
			var debts []string
			for _, h := range []string{"net.c3", "net.c9"} {
				if _, owes := s.Debts[h]; owes {
					debts = append(debts, h)
				}
			}
			require.Equal(t, row.debts, debts)
			require.NotZero(t, number)
			again, _, _, err := Decode(EncodeState(number, s))
			require.NoError(t, err, "what is gone on with can be written and read")
			require.Equal(t, s, again)
		})
	}
}

func TestWitness(t *testing.T) {
	w := Witness{Boot: "8a2f", Number: 1 << 40, Confirmed: time.Hour}
	data := w.Encode()
	require.Equal(t, w, DecodeWitness(data))
	require.Equal(t, w, DecodeWitness(append(data, "the end of a longer one"...)), "it is written over in place")
	for i := range data {
		require.Zero(t, DecodeWitness(data[:i]))
		damaged := bytes.Clone(data)
		damaged[i] ^= 4
		require.Zero(t, DecodeWitness(damaged))
	}
}

func TestRecordsThatDoNotFitAreRefused(t *testing.T) {
	class := ClassOf(4)
	for want, r := range map[string]Record{
		"no such operation":  {Op: "dance"},
		"no epoch":           {Op: OpBegin},
		"no boot":            {Op: OpReboot},
		"cool-down":          {Op: OpTerms, Cooldown: -1},
		"sequence numbers":   {Op: OpStock, Class: &class, Addrs: []netip.Addr{addr(5)}},
		"no class":           {Op: OpStock, Addrs: []netip.Addr{addr(5)}, Sequences: []uint64{1}},
		"is not of class 4":  {Op: OpStock, Class: &class, Addrs: []netip.Addr{netip.MustParseAddr("fd00::5")}, Sequences: []uint64{1}},
		"is here already":    {Op: OpStock, Class: &class, Addrs: []netip.Addr{addr(1)}, Sequences: []uint64{1}},
		`is ""`:              {Op: OpLend, Handle: "h", Addrs: []netip.Addr{addr(9)}},
		`is "lent"`:          {Op: OpLend, Handle: "h", Addrs: []netip.Addr{addr(2)}},
		`is "warm"`:          {Op: OpBack, Addrs: []netip.Addr{addr(1)}},
		"no handle":          {Op: OpLend, Addrs: []netip.Addr{addr(1)}},
		"there twice":        {Op: OpLend, Handle: "h", Addrs: []netip.Addr{addr(1), addr(1)}},
		"is not to be freed": {Op: OpPaid, Handle: "h"},
		"a handle of 2000":   {Op: OpOwe, Handle: strings.Repeat("h", 2000)},
		"is no node's":       {Op: OpDrop, Addrs: []netip.Addr{{}}},
	} {
		s := NewState("boot")
		for _, r := range []Record{
			{Op: OpBegin, Epoch: 1},
			{Op: OpStock, Class: &class, Addrs: []netip.Addr{addr(1), addr(2)}, Sequences: []uint64{1, 2}},
			{Op: OpLend, Handle: "h", Addrs: []netip.Addr{addr(2)}},
		} {
			require.NoError(t, s.Apply(r))
		}
		before := s.Clone()
		require.ErrorContains(t, s.Apply(r), want)
		require.Equal(t, before, s)
	}
}

// Whoever sets the clock of the host, forwards or back, changes nothing: no wall clock is asked.
func TestNoWallClock(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, no := range []string{"time.Now", "time.Since", "time.Until"} {
			require.NotContains(t, string(text), no, name)
		}
	}
}

// FuzzDecode reads anything. What is read can be written and read again, and a node can start with it.
func FuzzDecode(f *testing.F) {
	data, _ := aJournal(f)
	f.Add(data, uint64(3))
	f.Add(data[:len(data)-5], uint64(0))
	f.Add(EncodeState(9, NewState("boot")), uint64(9))
	f.Add([]byte{}, uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, promised uint64) {
		s, number, good, err := Decode(data)
		if (err == nil) != (good == len(data) && number > 0) {
			t.Fatalf("%d of %d bytes are good: %v", good, len(data), err)
		}
		if number == 0 {
			return
		}
		again, n, _, err := Decode(EncodeState(number, s))
		if err != nil || n != number || fmt.Sprint(again) != fmt.Sprint(s) {
			t.Fatalf("%v: %v and %v", err, s, again)
		}
		s, _, claims, fate := Recover(data, Witness{Boot: s.Boot, Number: promised}, s.Boot, nil)
		c := NewCore(s, DefaultTerms(), time.Hour, time.Hour, claims)
		if _, _, miss := c.Lend(time.Hour, "h", nil, ClassOf(4)); miss == "" && fate != Kept {
			t.Fatalf("an address is lent from a journal that is %s", fate)
		}
		for range 10 {
			task, _, _ := c.Next(time.Hour)
			if task == nil {
				break
			}
			c.Done(time.Hour, task, Answer{Err: ErrStale})
		}
	})
}
