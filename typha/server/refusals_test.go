package server

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func newTestRefusals() (*refusals, *bytes.Buffer) {
	var out bytes.Buffer
	return newRefusals(slog.New(slog.NewTextHandler(&out, nil)), newMetrics(prometheus.NewRegistry()).refused), &out
}

func TestARefusalIsLoggedOnceAndAgainAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, out := newTestRefusals()
		for range 100 {
			r.note(refusedDenied, "node/a", "Register", errors.New("no"))
		}
		r.note(refusedDenied, "node/a", "Report", errors.New("no"))
		r.note(refusedDenied, "node/b", "Register", errors.New("no"))
		assert.Equal(t, 3, strings.Count(out.String(), "refused a client"), out)
		time.Sleep(refusedQuiet)
		r.note(refusedDenied, "node/a", "Register", errors.New("no"))
		assert.Contains(t, out.String(), "before=99")
	})
}

func TestWhoComesFromEverywhereFillsNoMemoryAndNoLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, out := newTestRefusals()
		for i := range 3 * refusedKept {
			r.note(refusedHandshake, fmt.Sprint(i), "handshake", errors.New("no"))
		}
		assert.Len(t, r.said, refusedKept)
		assert.Equal(t, refusedKept, strings.Count(out.String(), "refused a client"))
		time.Sleep(refusedQuiet)
		r.note(refusedDenied, "node/a", "Register", errors.New("no"))
		assert.Len(t, r.said, 1, "what is old makes room")
	})
}

func TestALongTextIsCut(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("é", 600), strings.Repeat("a\xff", 600)} {
		cut := shortened(text, 512)
		assert.LessOrEqual(t, len(cut), 512)
		if utf8.ValidString(text) && len(text) <= 512 {
			assert.Equal(t, text, cut)
		}
	}
	err := brief(status.Error(codes.InvalidArgument, strings.Repeat("x", 1<<20)))
	assert.Equal(t, codes.InvalidArgument, status.Code(err))
	assert.Equal(t, refusedInvalid, reasonOf(err))
	assert.Less(t, len(err.Error()), 4096)
	assert.NoError(t, brief(nil))
}

// Frames are found however they are cut into writes, and nothing else is taken for one.
func TestFramesThatRefuseAreFound(t *testing.T) {
	var wire bytes.Buffer
	f := http2.NewFramer(&wire, nil)
	assert.NoError(t, f.WriteSettings())
	assert.NoError(t, f.WriteData(1, false, bytes.Repeat([]byte{0, 0, 4, byte(http2.FrameRSTStream)}, 100)))
	assert.NoError(t, f.WriteRSTStream(3, http2.ErrCodeFrameSize))
	assert.NoError(t, f.WriteSettingsAck())
	assert.NoError(t, f.WriteGoAway(5, http2.ErrCodeEnhanceYourCalm, []byte("calm")))
	assert.NoError(t, f.WriteRSTStream(7, http2.ErrCodeNo))
	all := wire.Bytes()
	for size := 1; size <= len(all); size++ {
		var s scanner
		var found []string
		for rest := all; len(rest) > 0; {
			n := min(size, len(rest))
			s.scan(rest[:n], func(kind http2.FrameType, code http2.ErrCode, text string) {
				found = append(found, fmt.Sprint(kind, " ", code, " ", text))
			})
			rest = rest[n:]
		}
		assert.Equal(t, []string{"RST_STREAM FRAME_SIZE_ERROR ", "GOAWAY ENHANCE_YOUR_CALM calm", "RST_STREAM NO_ERROR "}, found, "%d bytes at a time", size)
	}
}
