package speaker

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type clocked struct {
	*sessions
	at time.Time
}

func newClocked() *clocked {
	c := &clocked{sessions: newSessions(), at: time.Unix(1e9, 0)}
	c.now = func() time.Time { return c.at }
	return c
}

var tor = netip.MustParseAddr("10.0.0.1")

// told is the history as text, newest first.
func (c *clocked) told() []string {
	var out []string
	for _, h := range c.get(tor).History {
		out = append(out, fmt.Sprintf("%d %s %s", h.At.Unix()-1e9, h.State, h.Reason))
	}
	return out
}

// attempt is one try to come up, 10 s after the one before.
func (c *clocked) attempt(reason string) {
	c.at = c.at.Add(10 * time.Second)
	c.set(tor, Active)
	c.set(tor, OpenSent)
	c.fail(tor, reason)
	c.set(tor, Idle)
}

func TestHistorySaysHowASessionWasLost(t *testing.T) {
	c := newClocked()
	c.add(tor)
	for _, s := range []State{Idle, Active, OpenSent, OpenConfirm, Established} {
		c.set(tor, s)
	}
	c.at = c.at.Add(time.Hour)
	c.fail(tor, "Error: Hold timer expired")
	step, ok := c.set(tor, Idle)
	require.True(t, ok)
	require.Equal(t, Established, step.from)
	require.Equal(t, "Error: Hold timer expired", step.reason)
	require.Equal(t, time.Hour, step.lasted)
	for range 1000 {
		c.attempt("Socket: Connection refused")
	}
	require.Equal(t, []string{
		"13600 Idle Socket: Connection refused", "3610 OpenSent ", "3610 Active ", "3600 Idle Error: Hold timer expired", "0 Established ", "0 OpenConfirm ",
		"0 OpenSent ", "0 Active ", "0 Idle ",
	}, c.told(), "attempts that fail alike are one entry")
	for i := range 1000 {
		c.attempt(fmt.Sprint("reason ", i))
	}
	require.Len(t, c.told(), keptTransitions)
	require.EqualValues(t, 1, c.get(tor).Flaps)
}

func TestHistoryOutlivesThePeersConfiguration(t *testing.T) {
	c := newClocked()
	c.add(tor)
	c.set(tor, Established)
	c.forget(tor)
	require.Empty(t, c.told(), "it is not shown while it is not configured")
	c.set(tor, Active)
	c.fail(tor, "from the time before")
	c.at = c.at.Add(time.Minute)
	c.add(tor)
	require.Equal(t, []string{"0 Down no longer configured", "0 Established "}, c.told())
	require.EqualValues(t, 1, c.get(tor).Flaps)
	require.Empty(t, c.get(tor).LastError)

	c.forget(tor)
	c.at = c.at.Add(2 * keptFor)
	c.add(tor)
	require.Empty(t, c.told(), "not for ever")
	for i := range 2 * keptHistories {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		c.at = c.at.Add(time.Millisecond)
		c.add(a)
		c.forget(a)
	}
	require.Len(t, c.gone, keptHistories)
}

func TestWhatStrangersDoIsNotKept(t *testing.T) {
	c := newClocked()
	require.False(t, c.fail(tor, "who is that"))
	_, ok := c.set(tor, Active)
	require.False(t, ok)
	require.Empty(t, c.byPeer)
}

func TestAReasonIsLoggedOnce(t *testing.T) {
	c := newClocked()
	c.add(tor)
	require.True(t, c.fail(tor, "a"))
	require.False(t, c.fail(tor, "a"))
	require.True(t, c.fail(tor, "b"))
	require.False(t, c.fail(tor, "a"), "it was logged before")
	c.set(tor, Established)
	require.False(t, c.fail(tor, "c"), "the loss will be logged")
	c.set(tor, Idle)
	require.True(t, c.fail(tor, "a"), "again after it was up")
	require.True(t, c.diagnose(tor, "x"))
	require.False(t, c.diagnose(tor, "x"))
	require.Equal(t, "x", c.get(tor).Diagnosis)
	c.set(tor, Established)
	require.Empty(t, c.get(tor).Diagnosis)
	require.False(t, c.diagnose(tor, "x"), "it is up")
}

// What a peer has said may be known a moment after the session has failed.
func TestALateReasonIsStillTheReason(t *testing.T) {
	c := newClocked()
	c.add(tor)
	c.set(tor, OpenSent)
	c.fail(tor, Refused)
	c.set(tor, Idle)
	c.at = c.at.Add(time.Second)
	c.fail(tor, "Received: Bad peer AS")
	require.Equal(t, "0 Idle Received: Bad peer AS", c.told()[0])
	c.at = c.at.Add(lateWords)
	c.fail(tor, "Socket: Connection refused")
	require.Equal(t, "0 Idle Received: Bad peer AS", c.told()[0])
}

func TestWhatFailedBeforeIsNotWhyASessionWasLost(t *testing.T) {
	c := newClocked()
	c.add(tor)
	c.fail(tor, "Socket: Connection refused")
	c.over(tor)
	c.set(tor, Established)
	step, _ := c.set(tor, Idle)
	require.Empty(t, step.reason)
}

// The engine's events may come after the reason of what they lead to.
func TestAReasonThatOvertakesTheSession(t *testing.T) {
	c := newClocked()
	c.add(tor)
	c.fail(tor, "Socket: Connection refused")
	c.over(tor)
	c.fail(tor, "Received: Peer de-configured")
	c.at = c.at.Add(time.Minute)
	c.set(tor, Established)
	step, _ := c.set(tor, Idle)
	require.Equal(t, "Received: Peer de-configured", step.reason)
}

// A peer that refuses us rests after it, and closes new connections.
func TestAPeerThatHangsUpHasSaidWhyBefore(t *testing.T) {
	c := newClocked()
	c.add(tor)
	c.fail(tor, "Received: Bad peer AS")
	for range 5 {
		c.at = c.at.Add(keptReason / 10)
		require.False(t, c.fail(tor, HungUp))
	}
	require.Equal(t, "Received: Bad peer AS", c.get(tor).LastError)
	c.at = c.at.Add(keptReason)
	require.True(t, c.fail(tor, HungUp))
	require.Equal(t, HungUp, c.get(tor).LastError)
}

func TestALateReasonAfterAnotherOne(t *testing.T) {
	c := newClocked()
	c.add(tor)
	c.fail(tor, "Received: Hard reset")
	c.set(tor, Idle)
	c.set(tor, OpenSent)
	c.fail(tor, Refused)
	c.set(tor, Idle)
	require.Equal(t, "Received: Hard reset", c.get(tor).LastError)
	c.fail(tor, "Received: Bad peer AS")
	require.Equal(t, "0 Idle Received: Bad peer AS", c.told()[0])
	require.Equal(t, "Received: Bad peer AS", c.get(tor).LastError)
}
