// while the run goes on, the page is read again now and then
if (data.renew) setTimeout(() => location.reload(), 1000 * data.renew);
