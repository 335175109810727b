package process

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Get gets a page, and tells the status with which it came.
func Get(ctx context.Context, url string) (text string, code int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return string(b), response.StatusCode, err
}

// Samples are the metrics of a page: name with labels to value.
func Samples(page string) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			out[line[:i]] = v
		}
	}
	return out
}
